"""The policy-gradient mathematics as pure functions on one sequence (or one group); batch them with `vmap`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

#: Added to a group's standard deviation, so that groups whose rewards are all equal give advantage 0, not NaN.
ADVANTAGE_EPS = 1e-4


def group_advantages(rewards: Float[np.ndarray, "G"], *, normalize: bool) -> Float[np.ndarray, "G"]:
    """Group-relative advantages of G answers to one prompt (GRPO, arXiv 2402.03300, section 4.1.2).

    A_i = (r_i - mean(r)) / (std(r) + 1e-4), population standard deviation; without the division if not `normalize`
    (Dr. GRPO, arXiv 2503.20783, section 3.1, which shows that it biases towards easy and hard prompts).

    Runs on the host in float64: rewards are there anyway, and the result does not depend on the device.
    """
    centered = np.asarray(rewards, np.float64) - np.mean(rewards, dtype=np.float64)
    if normalize:
        centered = centered / (np.sqrt(np.mean(centered**2)) + ADVANTAGE_EPS)
    return centered


def clipped_surrogate(
    logprobs: Float[Array, "T"],
    behavior_logprobs: Float[Array, "T"],
    advantages: Float[Array, "T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Array, "T"]:
    """PPO's clipped objective per token, negated to be minimised (PPO, arXiv 1707.06347, equation 7).

    -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with rho = exp(logprobs - behavior_logprobs). Separate
    bounds are DAPO's clip-higher (arXiv 2503.14476, equation 10).
    """
    rho = jnp.exp(logprobs - behavior_logprobs)
    clipped = jnp.clip(rho, 1.0 - clip_low, 1.0 + clip_high)
    return -jnp.minimum(rho * advantages, clipped * advantages)


def is_clipped(
    logprobs: Float[Array, "T"],
    behavior_logprobs: Float[Array, "T"],
    advantages: Float[Array, "T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Array, "T"]:
    """1 where the clipped objective has no gradient because the ratio has left its bounds, else 0."""
    rho = jnp.exp(logprobs - behavior_logprobs)
    above = (rho > 1.0 + clip_high) & (advantages > 0)
    below = (rho < 1.0 - clip_low) & (advantages < 0)
    return (above | below).astype(logprobs.dtype)


def k3_kl(logprobs: Float[Array, "T"], reference_logprobs: Float[Array, "T"]) -> Float[Array, "T"]:
    """The k3 estimate of KL(policy || reference) per sampled token; never negative.

    k3 = exp(d) - 1 - d with d = reference_logprobs - logprobs (Schulman, "Approximating KL divergence", 2020; GRPO,
    arXiv 2402.03300, equation 4). Unbiased when the tokens come from the policy itself.
    """
    difference = reference_logprobs - logprobs
    return jnp.expm1(difference) - difference


def cross_entropy(logprobs: Float[Array, "T"]) -> Float[Array, "T"]:
    """Negative log-likelihood of the tokens, the loss of a supervised start."""
    return -logprobs


def loss_weights(loss_mask: Float[np.ndarray, "B T"], *, reduction: str) -> Float[np.ndarray, "B T"]:
    """Weight of every token, such that the loss is the plain sum of weight x token loss over all tokens.

    The weights carry the normaliser of the whole batch, so the sum may be split over microbatches and devices in any
    way. "sequence_mean": mean over sequences of each one's token mean (GRPO, arXiv 2402.03300, equation 3).
    "token_mean": mean over all sampled tokens (DAPO, arXiv 2503.14476, equation 8). Rows without a sampled token
    have weight 0 and don't count as sequences.
    """
    mask = np.asarray(loss_mask, np.float64)
    lengths = mask.sum(axis=1, keepdims=True)
    match reduction:
        case "sequence_mean":
            sequences = max(int((lengths > 0).sum()), 1)
            weights = mask / np.maximum(lengths, 1) / sequences
        case "token_mean":
            weights = mask / max(mask.sum(), 1.0)
        case _:
            raise ValueError(f"unknown reduction {reduction!r}; known: sequence_mean, token_mean")
    return weights.astype(np.float32)


def masked_sum(values: Float[Array, "*S"], mask: Float[Array, "*S"]) -> Float[Array, ""]:
    """Sum of `values` where `mask` is not 0; what stands elsewhere, NaN included, never matters."""
    return jnp.sum(jnp.where(mask != 0, values * mask, 0.0))
