"""The policy's objectives, negated to be minimised: per token, on one sequence; batch them with `vmap`.

`log_ratios` is log(current policy / anchor policy) of the token that was taken. Its gradient is that of the current
log-prob; the anchor is fixed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

#: Bound of |log ratio| before the exponential: e^20 is a ratio that no bound lets through, and its square is finite.
MAX_LOG_RATIO = 20.0


def importance_ratios(log_ratios: Float[Array, "*T"]) -> Float[Array, "*T"]:
    """exp of log ratios clipped to +-20 nats: beyond that a ratio has no gradient, and nothing overflows."""
    return jnp.exp(jnp.clip(log_ratios, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def ppo(
    log_ratios: Float[Array, "T"],
    advantages: Float[Array, "T"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Float[Array, "T"]:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv 1707.06347, equation 7).

    Separate bounds are DAPO's clip-higher (arXiv 2503.14476, equation 10). With `dual_clip` = c the objective of a
    negative advantage is at least c A (dual-clip PPO, arXiv 1912.09729, equation 5).
    """
    rho = importance_ratios(log_ratios)
    objective = jnp.minimum(rho * advantages, jnp.clip(rho, 1.0 - clip_low, 1.0 + clip_high) * advantages)
    if dual_clip is not None:
        objective = jnp.where(advantages < 0, jnp.maximum(objective, dual_clip * advantages), objective)
    return -objective


def is_clipped(
    log_ratios: Float[Array, "T"], advantages: Float[Array, "T"], *, clip_low: float, clip_high: float
) -> Float[Array, "T"]:
    """1 where `ppo` has no gradient because the ratio has left its bounds on the side that gains, else 0."""
    rho = importance_ratios(log_ratios)
    above = (rho > 1.0 + clip_high) & (advantages > 0)
    below = (rho < 1.0 - clip_low) & (advantages < 0)
    return (above | below).astype(log_ratios.dtype)


def cispo(
    logprobs: Float[Array, "T"],
    log_ratios: Float[Array, "T"],
    advantages: Float[Array, "T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Array, "T"]:
    """-sg(clip(rho, 1 - clip_low, 1 + clip_high)) A log pi (CISPO of MiniMax-M1, arXiv 2506.13585, equations 4 and 5).

    The weight is clipped and carries no gradient, so that every token keeps one.
    """
    weights = jnp.clip(importance_ratios(log_ratios), 1.0 - clip_low, 1.0 + clip_high)
    return policy_gradient(logprobs, advantages, weights)


def gspo(
    logprobs: Float[Array, "T"],
    log_ratios: Float[Array, "T"],
    advantages: Float[Array, "T"],
    loss_mask: Bool[Array, "T"],
    segments: Int[Array, "T"] | None = None,
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Array, "T"]:
    """PPO's clipping of one ratio per answer: s = exp(mean of the sampled tokens' log ratios).

    GSPO (arXiv 2507.18071, equations 5 and 7), in the form of its equation 13: every token's ratio is
    sg(s) pi / sg(pi). With one advantage per answer and the mean over its tokens, value and gradient are those of
    equation 5.
    """
    sequence = sequence_log_ratio(log_ratios, loss_mask, segments)
    token = jax.lax.stop_gradient(sequence) + logprobs - jax.lax.stop_gradient(logprobs)
    return ppo(token, advantages, clip_low=clip_low, clip_high=clip_high)


def sequence_log_ratio(
    log_ratios: Float[Array, "T"], loss_mask: Bool[Array, "T"], segments: Int[Array, "T"] | None = None
) -> Float[Array, "*T"]:
    """Mean log ratio of the sampled tokens, the log of their geometric mean; 0 without one.

    One number, or with `segments` one per token: that of the sequence which the token belongs to.
    """
    total = sequence_sum(jnp.where(loss_mask, log_ratios, 0.0), segments)
    return total / jnp.maximum(sequence_sum(loss_mask.astype(log_ratios.dtype), segments), 1)


def sequence_sum(values: Float[Array, "T"], segments: Int[Array, "T"] | None) -> Float[Array, "*T"]:
    """Sum over the row, or with `segments`, at every token the sum over its segment; padding, -1, is one, too."""
    if segments is None:
        return jnp.sum(values)
    room = values.shape[0] + 1
    numbers = jnp.where(segments < 0, room - 1, segments)
    return jax.ops.segment_sum(values, numbers, num_segments=room)[numbers]


def policy_gradient(
    logprobs: Float[Array, "T"], advantages: Float[Array, "T"], weights: Float[Array, "T"]
) -> Float[Array, "T"]:
    """-sg(w) A log pi: REINFORCE (Williams, 1992, equation 11) with a fixed importance weight.

    With w = 1 and V-trace advantages, IMPALA's policy gradient (arXiv 1802.01561, section 4.2); with
    w = min(ratio, cap), truncated importance sampling (Ionides, 2008, equation 2).
    """
    return -jax.lax.stop_gradient(weights) * advantages * logprobs
