"""The train step and what is compiled around it."""

from learner_jax.training.compiled_programs import keep_compiled
from learner_jax.training.engine import Engine
from learner_jax.training.fine_tuning import fine_tune, fine_tuning_objective
from learner_jax.training.lagging import Mismatch
from learner_jax.training.memory_plan import Plan, PlanError, Program
from learner_jax.training.microbatches import PlannedBatch
from learner_jax.training.objective import reinforcement
from learner_jax.training.optimizer import make_optimizer
from learner_jax.training.publication import golden_prompts
from learner_jax.training.supervised import warm_start
from learner_jax.training.train_step import Params, TrainState, init_state

__all__ = [
    "Engine",
    "Mismatch",
    "Params",
    "Plan",
    "PlanError",
    "PlannedBatch",
    "Program",
    "TrainState",
    "fine_tune",
    "fine_tuning_objective",
    "golden_prompts",
    "init_state",
    "keep_compiled",
    "make_optimizer",
    "reinforcement",
    "warm_start",
]
