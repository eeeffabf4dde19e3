"""The mathematics of the papers: advantages, returns, objectives, corrections, KL."""

from learner_jax.losses.advantages import ADVANTAGE_EPS, dr_grpo, group_advantages, grpo, overlong_penalty, rloo
from learner_jax.losses.corrections import effective_sample_share
from learner_jax.losses.kl import ESTIMATORS, adapted_coefficient
from learner_jax.losses.objectives import token_local
from learner_jax.losses.policy import importance_ratios, sequence_log_ratio, sequence_sum
from learner_jax.losses.returns import Targets, generalized_advantages, vtrace
from learner_jax.losses.reward_parts import Part, columns, decoupled
from learner_jax.losses.terms import loss_counts, loss_weights
from learner_jax.losses.turns import turn_advantages, turn_returns

__all__ = [
    "ADVANTAGE_EPS",
    "ESTIMATORS",
    "Part",
    "Targets",
    "adapted_coefficient",
    "columns",
    "decoupled",
    "dr_grpo",
    "effective_sample_share",
    "generalized_advantages",
    "group_advantages",
    "grpo",
    "importance_ratios",
    "loss_counts",
    "loss_weights",
    "overlong_penalty",
    "rloo",
    "sequence_log_ratio",
    "sequence_sum",
    "token_local",
    "turn_advantages",
    "turn_returns",
    "vtrace",
]
