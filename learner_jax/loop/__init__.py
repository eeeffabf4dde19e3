"""The learner's loop: lease, train, publish, save, acknowledge."""

from learner_jax.loop.host_facts import code_facts, environment_facts, flat, folder_facts
from learner_jax.loop.learner import Learner, Outcome
from learner_jax.loop.profiling import Profiler

__all__ = ["Learner", "Outcome", "Profiler", "code_facts", "environment_facts", "flat", "folder_facts"]
