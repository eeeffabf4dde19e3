"""The policy's objectives as settings name them: per token, on one row; each takes what its parameters name.

One from outside is called in the same way. It may return its loss alone, or with values per token for the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from learner_jax.losses import policy
from learner_jax.losses.corrections import staleness_weights

#: (loss of every token, values of every token for the log)
Outcome = tuple[Float[Array, "T"], dict[str, Float[Array, "T"]]]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def token_local(objective: _Function) -> _Function:
    """Says of an objective that the loss of a token depends on that token's own values alone.

    Its gradient is then taken chunk by chunk, without the log-probs of a whole row.
    """
    objective.token_local = True  # type: ignore[attr-defined]
    return objective


@token_local
def ppo(
    log_ratios: Float[Array, "T"],
    advantages: Float[Array, "T"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Outcome:
    """`policy.ppo` around the policy that sampled."""
    loss = policy.ppo(log_ratios, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    return loss, {"clip_fraction": policy.is_clipped(log_ratios, advantages, clip_low=clip_low, clip_high=clip_high)}


@token_local
def decoupled_ppo(
    proximal_log_ratios: Float[Array, "T"],
    staleness_log_ratios: Float[Array, "T"],
    advantages: Float[Array, "T"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    importance: str,
    importance_cap: float,
) -> Outcome:
    """PPO around the proximal policy, weighted by proximal / behaviour (arXiv 2110.00641, equation 3)."""
    loss, values = ppo(proximal_log_ratios, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    if importance == "truncated":
        loss = staleness_weights(staleness_log_ratios, cap=importance_cap) * loss
    return loss, values


@token_local
def cispo(
    logprobs: Float[Array, "T"],
    log_ratios: Float[Array, "T"],
    advantages: Float[Array, "T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Outcome:
    """`policy.cispo` around the policy that sampled."""
    bounds = {"clip_low": clip_low, "clip_high": clip_high}
    loss = policy.cispo(logprobs, log_ratios, advantages, **bounds)
    return loss, {"clip_fraction": policy.is_clipped(log_ratios, advantages, **bounds)}


def gspo(
    logprobs: Float[Array, "T"],
    log_ratios: Float[Array, "T"],
    advantages: Float[Array, "T"],
    loss_mask: Bool[Array, "T"],
    segments: Int[Array, "T"] | None,
    *,
    clip_low: float,
    clip_high: float,
) -> Outcome:
    """`policy.gspo` around the policy that sampled."""
    bounds = {"clip_low": clip_low, "clip_high": clip_high}
    sequence = policy.sequence_log_ratio(log_ratios, loss_mask, segments)
    outside = policy.is_clipped(jnp.broadcast_to(sequence, log_ratios.shape), advantages, **bounds)
    loss = policy.gspo(logprobs, log_ratios, advantages, loss_mask, segments, **bounds)
    return loss, {"clip_fraction": outside}


@token_local
def policy_gradient(
    logprobs: Float[Array, "T"],
    log_ratios: Float[Array, "T"],
    advantages: Float[Array, "T"],
    *,
    importance: str,
    importance_cap: float,
) -> Outcome:
    """`policy.policy_gradient` with the truncated ratio to the policy that sampled as weight, or without one."""
    truncated = importance == "truncated"
    weights = staleness_weights(log_ratios, cap=importance_cap) if truncated else jnp.ones_like(log_ratios)
    outside = (weights >= importance_cap).astype(jnp.float32)
    return policy.policy_gradient(logprobs, advantages, weights), {"clip_fraction": outside}
