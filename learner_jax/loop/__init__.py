"""The learner's loop: lease, train, publish, save, acknowledge."""

from learner_jax.loop.anew import Anew
from learner_jax.loop.feed import Feed, StepGroups
from learner_jax.loop.holding import Holding
from learner_jax.loop.host_facts import code_facts, environment_facts, flat, folder_facts
from learner_jax.loop.learner import Learner, Outcome
from learner_jax.loop.profiling import Profiler
from learner_jax.loop.publishing import Publishing
from learner_jax.loop.saving import Saving

__all__ = [
    "Anew",
    "Feed",
    "Holding",
    "Learner",
    "Outcome",
    "Profiler",
    "Publishing",
    "Saving",
    "StepGroups",
    "code_facts",
    "environment_facts",
    "flat",
    "folder_facts",
]
