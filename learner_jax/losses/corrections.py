"""Weights for data of another policy: the sampler's mismatch, staleness, effective sample size; on one row.

Two ratios are kept apart. *Mismatch* is trainer / sampler at the same policy version: other kernels, other dtypes,
other rounding. *Staleness* is the newer policy / the older one, both by the trainer. Weights carry no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from learner_jax.losses.policy import importance_ratios, sequence_log_ratio, sequence_sum


def mismatch_weights(
    log_ratios: Float[Array, "T"],
    loss_mask: Bool[Array, "T"],
    segments: Int[Array, "T"] | None = None,
    *,
    truncation: float | None = None,
    band: tuple[float, float] | None = None,
    sequence_band: tuple[float, float] | None = None,
    veto: float | None = None,
) -> Float[Array, "T"]:
    """Weight of every sampled token for the sampler's mismatch; what is masked has weight 0.

    Args:
      log_ratios: log(trainer / sampler) at the version that sampled the token, nats.
      segments: number of the sequence that each token belongs to, where the row holds several.
      truncation: weight by min(ratio, truncation) (TIS: Yao et al., "Your Efficient RL Framework Secretly Brings You
        Off-Policy RL Training", 2025); without it the weight is 1.
      band: mask tokens whose ratio is outside [low, high] (IcePop, in Ring-1T, arXiv 2510.18855, equation 2, which
        also weights by the ratio: set `truncation` to the upper bound for that).
      sequence_band: mask the whole answer when the geometric mean of its ratios is outside (Liu, Li et al., "When
        Speed Kills Stability", 2025, geometric sequence masking).
      veto: mask the whole answer when any token's ratio is below (same source): the sampler drew what the trainer
        holds to be all but impossible.
    """
    ratios = importance_ratios(jnp.where(loss_mask, log_ratios, 0.0))
    weights = jnp.ones_like(ratios) if truncation is None else jnp.minimum(ratios, truncation)
    kept = loss_mask
    if band is not None:
        kept = kept & (ratios >= band[0]) & (ratios <= band[1])
    if sequence_band is not None:
        mean = importance_ratios(sequence_log_ratio(log_ratios, loss_mask, segments))
        kept = kept & (mean >= sequence_band[0]) & (mean <= sequence_band[1])
    if veto is not None:
        vetoed = sequence_sum((loss_mask & (ratios < veto)).astype(ratios.dtype), segments)
        kept = kept & (vetoed == 0)
    return jax.lax.stop_gradient(jnp.where(kept, weights, 0.0))


def staleness_weights(log_ratios: Float[Array, "T"], *, cap: float) -> Float[Array, "T"]:
    """min(proximal / behaviour, cap) per token: decoupled PPO's weight (arXiv 2110.00641, equation 3), truncated."""
    return jax.lax.stop_gradient(jnp.minimum(importance_ratios(log_ratios), cap))


def effective_sample_share(weight_sum: Float[Array, ""], square_sum: Float[Array, ""], count: Array) -> Array:
    """Effective sample size over sample size, (sum w)^2 / (n sum w^2), in (0, 1] (Kong, 1992); 1 without samples."""
    return jnp.where(square_sum > 0, weight_sum**2 / jnp.maximum(count * square_sum, 1e-30), 1.0)
