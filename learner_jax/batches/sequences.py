"""Trajectories as rows of tokens of one width, and what the planner of rows must know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from learner_jax.batches.rows import Lengths
from learner_jax.contracts import Trajectory
from learner_jax.runtime import WeirError


class BatchError(WeirError, ValueError):
    """A trajectory doesn't fit the learner's fixed shapes."""


@dataclass(frozen=True)
class Sequences:
    """The sequences of a batch, one a row, right-padded with token 0; on the host.

    Attributes:
      sampled: whether the policy sampled the token.
    """

    tokens: Int[np.ndarray, "B T"]
    sampled: Bool[np.ndarray, "B T"]
    lengths: Lengths

    @classmethod
    def joined(cls, parts: Sequence[Sequences]) -> Sequences:
        """The sequences of several parts of a batch, in their order; groups do not reach over parts."""
        if len(parts) == 1:
            return parts[0]
        first_groups = np.cumsum([0] + [len(np.unique(part.lengths.groups)) for part in parts[:-1]])
        groups = [part.lengths.groups + first for part, first in zip(parts, first_groups, strict=True)]
        return cls(
            tokens=np.concatenate([part.tokens for part in parts]),
            sampled=np.concatenate([part.sampled for part in parts]),
            lengths=Lengths(
                tokens=np.concatenate([part.lengths.tokens for part in parts]),
                groups=np.concatenate(groups),
                shared=np.concatenate([part.lengths.shared for part in parts]),
            ),
        )


#: The reference's log-probs of sequences, float32[B, T], nats; those of tokens that were not sampled are not used.
Reference = Callable[[Sequences], np.ndarray]


def sequences(groups: Sequence[Sequence[Trajectory]], *, sequence_length: int) -> Sequences:
    """All trajectories, one a row of `sequence_length` tokens.

    Raises:
      BatchError: a trajectory is longer.
    """
    trajectories = [trajectory for group in groups for trajectory in group]
    _check_lengths(trajectories, sequence_length)
    return Sequences(
        tokens=padded([t.tokens for t in trajectories], sequence_length, np.int32),
        sampled=padded([t.loss_mask for t in trajectories], sequence_length, np.bool_),
        lengths=group_lengths(groups),
    )


def group_lengths(groups: Sequence[Sequence[Trajectory]]) -> Lengths:
    """Lengths of all trajectories, and how many leading, unsampled tokens those of a group have in common."""
    shared = [_shared_tokens(group) for group in groups]
    sizes = [len(group) for group in groups]
    return Lengths(
        tokens=np.array([len(t.tokens) for group in groups for t in group], np.int64),
        groups=np.repeat(np.arange(len(groups)), sizes),
        shared=np.repeat(np.array(shared, np.int64), sizes),
    )


def _shared_tokens(group: Sequence[Trajectory]) -> int:
    if len(group) < 2:
        return 0
    length = min(int(np.argmax(t.loss_mask)) for t in group)
    prompts = np.stack([t.tokens[:length] for t in group])
    differs = (prompts != prompts[0]).any(axis=0)
    return int(np.argmax(differs)) if differs.any() else length


def _check_lengths(trajectories: Sequence[Trajectory], sequence_length: int) -> None:
    for t in trajectories:
        if len(t.tokens) > sequence_length:
            raise BatchError(
                f"trajectory {t.trajectory_id} has {len(t.tokens)} tokens, rows hold {sequence_length}: "
                f"raise learner.sequence_length"
            )


def padded(rows: Sequence[np.ndarray], length: int, dtype: type, fill: float = 0) -> Any:
    """Rows [B, length], each filled at its right."""
    out: Any = np.full((len(rows), length), fill, dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out
