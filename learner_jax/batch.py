"""From trajectories to the fixed-shape arrays of one train step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from learner_jax.contracts import NOT_SAMPLED, Trajectory
from learner_jax.losses import group_advantages, loss_weights


class BatchError(ValueError):
    """A trajectory doesn't fit the learner's fixed shapes."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Rows of one optimizer step, right-padded with token 0 and weight 0; a pytree.

    Built of NumPy arrays on the host (typed as JAX's, which they become in the train step).

    Attributes:
      tokens: token ids.
      weights: weight of each token's loss, normalised over the whole batch; 0 on padding and unsampled tokens.
      advantages: one value per token.
      behavior_logprobs: log-probs of the sampler, nats.
      reference_logprobs: log-probs of the frozen reference, nats; zeros when no KL is asked for.
      policy_version: version that sampled each token, -1 elsewhere; only for measuring the sampler's mismatch.
    """

    tokens: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    behavior_logprobs: Float[Array, "B T"]
    reference_logprobs: Float[Array, "B T"]
    policy_version: Int[Array, "B T"]


@dataclass(frozen=True)
class BatchStats:
    """Facts about a batch that need no model."""

    reward: float
    reward_parts: dict[str, float]
    staleness_mean: float
    staleness_max: int
    num_tokens: int
    answer_tokens_mean: float
    zero_variance_groups: int
    truncated_share: float
    mixed_version_answers: int


def _rows(rows: Sequence[np.ndarray], length: int, dtype: type, fill: float = 0) -> Any:
    out: Any = np.full((len(rows), length), fill, dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def _on_host(array: np.ndarray) -> Any:
    """A host array where `Batch` declares what the train step will see: a JAX array of the same shape and dtype."""
    return array


def rl_batch(
    groups: Sequence[Sequence[Trajectory]],
    *,
    sequence_length: int,
    trained_version: int,
    normalize_advantage: bool,
    reduction: str,
) -> tuple[Batch, BatchStats]:
    """Builds the batch of one reinforcement-learning step.

    Raises:
      BatchError: a trajectory is longer than `sequence_length`.
    """
    trajectories = [trajectory for group in groups for trajectory in group]
    for t in trajectories:
        if len(t.tokens) > sequence_length:
            raise BatchError(
                f"trajectory {t.trajectory_id} has {len(t.tokens)} tokens, rows hold {sequence_length}: "
                f"raise learner.sequence_length"
            )
    advantages = np.concatenate(
        [group_advantages(np.array([t.total_reward for t in g]), normalize=normalize_advantage) for g in groups]
    )
    mask = _rows([t.loss_mask for t in trajectories], sequence_length, np.bool_)
    versions = _rows([t.policy_version for t in trajectories], sequence_length, np.int32, NOT_SAMPLED)
    batch = Batch(
        tokens=_rows([t.tokens for t in trajectories], sequence_length, np.int32),
        weights=_on_host(loss_weights(mask, reduction=reduction)),
        advantages=(advantages[:, None] * mask).astype(np.float32),
        behavior_logprobs=_rows([t.behavior_logprobs for t in trajectories], sequence_length, np.float32),
        reference_logprobs=_on_host(np.zeros(mask.shape, np.float32)),
        policy_version=versions,
    )
    return batch, _stats(groups, trajectories, trained_version)


def _stats(
    groups: Sequence[Sequence[Trajectory]], trajectories: Sequence[Trajectory], trained_version: int
) -> BatchStats:
    lags = np.array([trained_version - t.oldest_version for t in trajectories])
    num_tokens = sum(int(t.loss_mask.sum()) for t in trajectories)
    names = sorted({name for t in trajectories for name in t.reward_parts})
    return BatchStats(
        reward=float(np.mean([t.total_reward for t in trajectories])),
        reward_parts={n: float(np.mean([t.reward_parts.get(n, 0.0) for t in trajectories])) for n in names},
        staleness_mean=float(lags.mean()),
        staleness_max=int(lags.max()),
        num_tokens=num_tokens,
        answer_tokens_mean=num_tokens / len(trajectories),
        zero_variance_groups=sum(len({t.total_reward for t in g}) == 1 for g in groups),
        truncated_share=float(np.mean([t.finish_reason == "length" for t in trajectories])),
        mixed_version_answers=sum(len(np.unique(t.policy_version[t.loss_mask])) > 1 for t in trajectories),
    )


def supervised_batch(examples: Sequence[tuple[Sequence[int], Sequence[bool]]], *, sequence_length: int) -> Batch:
    """Builds a batch for cross-entropy from (tokens, loss mask) pairs; token-mean reduction.

    Raises:
      BatchError: an example is longer than `sequence_length`.
    """
    longest = max(len(tokens) for tokens, _ in examples)
    if longest > sequence_length:
        raise BatchError(
            f"a supervised example has {longest} tokens, rows hold {sequence_length}: raise learner.sequence_length"
        )
    mask = _rows([np.asarray(m) for _, m in examples], sequence_length, np.bool_)
    zeros: Any = np.zeros(mask.shape, np.float32)
    return Batch(
        tokens=_rows([np.asarray(tokens) for tokens, _ in examples], sequence_length, np.int32),
        weights=_on_host(loss_weights(mask, reduction="token_mean")),
        advantages=zeros,
        behavior_logprobs=zeros,
        reference_logprobs=zeros,
        policy_version=_on_host(np.full(mask.shape, NOT_SAMPLED, np.int32)),
    )
