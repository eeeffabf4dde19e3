"""Value, supervised and preference losses on one sequence (or pair), and the weights that reduce token losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def cross_entropy(logprobs: Float[Array, "T"]) -> Float[Array, "T"]:
    """Negative log-likelihood of the tokens, the loss of a supervised start."""
    return -logprobs


def value_loss(
    values: Float[Array, "T"],
    targets: Float[Array, "T"],
    old_values: Float[Array, "T"] | None = None,
    *,
    clip: float | None = None,
) -> Float[Array, "T"]:
    """(V - target)^2 / 2 per decision.

    With `clip`, the larger of that and the loss of a value that moved at most `clip` from `old_values`, the value
    function's answer to PPO's clipping (arXiv 2006.05990, section 3.2, "PPO-style value clipping").
    """
    squared = jnp.square(values - targets)
    if clip is not None and old_values is not None:
        near = old_values + jnp.clip(values - old_values, -clip, clip)
        squared = jnp.maximum(squared, jnp.square(near - targets))
    return 0.5 * squared


def bradley_terry(chosen_score: Float[Array, ""], rejected_score: Float[Array, ""]) -> Float[Array, ""]:
    """-log sigmoid(s_chosen - s_rejected): the loss of a reward model (InstructGPT, arXiv 2203.02155, equation 1)."""
    return -jax.nn.log_sigmoid(chosen_score - rejected_score)


def dpo(chosen_log_ratio: Float[Array, ""], rejected_log_ratio: Float[Array, ""], *, beta: float) -> Float[Array, ""]:
    """-log sigmoid(beta (log pi/q of the chosen answer - of the rejected)) (DPO, arXiv 2305.18290, equation 7).

    Args:
      chosen_log_ratio, rejected_log_ratio: log of policy / reference of a whole answer, summed over its tokens, nats.
    """
    return -jax.nn.log_sigmoid(beta * (chosen_log_ratio - rejected_log_ratio))


def loss_counts(loss_mask: Bool[np.ndarray, "B T"]) -> tuple[int, int]:
    """(sequences with a token that is learned from, such tokens): what `loss_weights` divides by."""
    return int(loss_mask.any(axis=1).sum()), int(loss_mask.sum())


def loss_weights(
    loss_mask: Bool[np.ndarray, "B T"],
    *,
    reduction: str,
    constant_tokens: int | None = None,
    counts: tuple[int, int] | None = None,
) -> Float[np.ndarray, "B T"]:
    """Weight of every token, such that the loss is the plain sum of weight x token loss over all tokens.

    The weights carry the normaliser of the whole batch, so the sum may be split over microbatches and devices in any
    way. Rows without a sampled token have weight 0 and don't count as sequences.

    "sequence_mean": mean over sequences of each one's token mean (GRPO, arXiv 2402.03300, equation 3).
    "token_mean": mean over all sampled tokens (DAPO, arXiv 2503.14476, equation 8).
    "constant": sum over tokens / `constant_tokens`, mean over sequences (Dr. GRPO, arXiv 2503.20783, section 3.1),
    so that a token weighs the same in a short and in a long answer, in this batch and in the next.

    Args:
      counts: `loss_counts` of the whole batch, where these rows are a part of it.
    """
    mask = np.asarray(loss_mask, np.float64)
    lengths = mask.sum(axis=1, keepdims=True)
    sequences, tokens = (max(count, 1) for count in counts or loss_counts(np.asarray(loss_mask)))
    match reduction:
        case "sequence_mean":
            weights = mask / np.maximum(lengths, 1) / sequences
        case "token_mean":
            weights = mask / tokens
        case "constant" if constant_tokens:
            weights = mask / constant_tokens / sequences
        case "constant":
            raise ValueError("reduction constant needs constant_tokens, the denominator per answer")
        case _:
            raise ValueError(f"unknown reduction {reduction!r}; known: sequence_mean, token_mean, constant")
    return weights.astype(np.float32)


def masked_sum(values: Float[Array, "*S"], weights: Float[Array, "*S"]) -> Float[Array, ""]:
    """Sum of `values` x `weights` where the weight is not 0; what stands elsewhere, NaN included, never matters."""
    used = weights != 0
    return jnp.sum(jnp.where(used, jnp.where(used, values, 0.0) * weights, 0.0))
