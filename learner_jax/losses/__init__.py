"""The mathematics of the papers: advantages, returns, objectives, corrections, KL."""

from learner_jax.losses.advantages import ADVANTAGE_EPS, group_advantages, overlong_penalty
from learner_jax.losses.corrections import effective_sample_share
from learner_jax.losses.kl import ESTIMATORS, adapted_coefficient
from learner_jax.losses.objectives import token_local
from learner_jax.losses.policy import importance_ratios, sequence_log_ratio, sequence_sum
from learner_jax.losses.returns import Targets, generalized_advantages, vtrace
from learner_jax.losses.terms import loss_counts, loss_weights

__all__ = [
    "ADVANTAGE_EPS",
    "ESTIMATORS",
    "Targets",
    "adapted_coefficient",
    "effective_sample_share",
    "generalized_advantages",
    "group_advantages",
    "importance_ratios",
    "loss_counts",
    "loss_weights",
    "overlong_penalty",
    "sequence_log_ratio",
    "sequence_sum",
    "token_local",
    "vtrace",
]
