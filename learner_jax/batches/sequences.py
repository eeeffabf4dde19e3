"""Trajectories as rows of tokens of one width, and what the planner of rows must know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from learner_jax.batches.rows import Lengths
from learner_jax.contracts import Trajectory, branches_of
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
    """All trajectories, one a row of `sequence_length` tokens; of one with branches, a row for each of them.

    Raises:
      BatchError: a trajectory is longer.
    """
    members = [[branch for trajectory in group for branch in branches_of(trajectory)] for group in groups]
    trajectories = [trajectory for group in members for trajectory in group]
    _check_lengths(trajectories, sequence_length)
    tokens = padded([t.tokens for t in trajectories], sequence_length, np.int32)
    sampled = padded([t.loss_mask for t in trajectories], sequence_length, np.bool_)
    sizes = np.array([len(group) for group in members], np.int64)
    group = np.repeat(np.arange(len(sizes)), sizes)
    shared = shared_tokens(tokens, sampled, sizes)[group]
    return Sequences(tokens, sampled, Lengths(np.array([len(t.tokens) for t in trajectories], np.int64), group, shared))


def shared_tokens(
    tokens: Int[np.ndarray, "B T"], sampled: Bool[np.ndarray, "B T"], sizes: Int[np.ndarray, "G"]
) -> Int[np.ndarray, "G"]:
    """Leading, unsampled tokens that all sequences of each group have in common; 0 for a group of one.

    Args:
      sizes: sequences of each group.
    """
    if not len(sizes):
        return np.zeros(0, np.int64)
    starts = np.cumsum(sizes) - sizes
    differs = tokens != np.repeat(tokens[starts], sizes, axis=0)
    ends = np.argmax(differs | sampled, axis=1)  # every sequence has a sampled token
    shared: np.ndarray = np.where(sizes > 1, np.minimum.reduceat(ends, starts), 0)
    return shared


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
    if rows:
        ends = np.array([len(row) for row in rows])
        out[np.arange(length) < ends[:, None]] = np.concatenate(rows)
    return out
