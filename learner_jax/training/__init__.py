"""The train step and what is compiled around it."""

from learner_jax.training.engine import Engine, Mismatch
from learner_jax.training.memory import Plan, PlanError, Program
from learner_jax.training.objective import reinforcement
from learner_jax.training.optimizer import make_optimizer
from learner_jax.training.supervised import warm_start
from learner_jax.training.train_step import Params, TrainState, init_state

__all__ = [
    "Engine",
    "Mismatch",
    "Params",
    "Plan",
    "PlanError",
    "Program",
    "TrainState",
    "init_state",
    "make_optimizer",
    "reinforcement",
    "warm_start",
]
