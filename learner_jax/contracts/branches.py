"""Branches of an episode: what an agent asked that does not go on from all it had asked before.

An agent compacts its history, tries again, or has a second agent help. Its episode is then several sequences of tokens.
A trajectory holds them one after the other, each from its first token on, so that an episode stays one record with one
id and one reward. What a branch has in common with an earlier one is context in it, and trained on in the earlier one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from learner_jax.contracts.group_arrays import ARRAY_DTYPES
from learner_jax.contracts.record_bounds import ContractError

if TYPE_CHECKING:
    from learner_jax.contracts.trajectory import Trajectory

MAX_BRANCHES = 10_000


def num_sequences(trajectory: Trajectory) -> int:
    """Sequences that a trajectory holds: its branches, or 1."""
    return len(trajectory.branch_tokens) or 1


def longest_sequence(trajectory: Trajectory) -> int:
    """Tokens of its longest sequence."""
    return max(trajectory.branch_tokens, default=len(trajectory.tokens))


def branches_of(trajectory: Trajectory) -> list[Trajectory]:
    """Each sequence of a trajectory as one of its own, under the same id; a trajectory without branches as it is.

    Each branch earns what the episode earned: what it was paid elsewhere stands at its last token.
    """
    if not trajectory.branch_tokens:
        return [trajectory]
    ends = np.cumsum(trajectory.branch_tokens)
    total = trajectory.rewards.sum(dtype=np.float64)
    found = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        arrays = {name: getattr(trajectory, name)[start:end] for name in ARRAY_DTYPES}
        rewards = arrays["rewards"].astype(np.float64)
        rewards[-1] += total - rewards.sum()
        arrays["rewards"] = rewards.astype(np.float32)
        found.append(replace(trajectory, **arrays, branch_tokens=()))
    return found


def check_branches(trajectory: Trajectory) -> None:
    """Raises `ContractError` unless the arrays, which were checked, hold the sequences of these lengths."""
    if not trajectory.branch_tokens:
        return
    name, lengths = trajectory.trajectory_id, trajectory.branch_tokens
    loss_mask, turn = trajectory.loss_mask, trajectory.turn
    if not 2 <= len(lengths) <= MAX_BRANCHES or any(type(length) is not int or length < 2 for length in lengths):
        raise ContractError(
            f"{name}: branch_tokens must be none, or 2 to {MAX_BRANCHES} lengths of 2 or more; {len(lengths)} came"
        )
    if sum(lengths) != len(loss_mask):
        raise ContractError(f"{name}: branch_tokens add up to {sum(lengths)}, expected {len(loss_mask)}")
    starts = np.cumsum([0, *lengths[:-1]])
    if loss_mask[starts].any():
        raise ContractError(f"{name}: the first token of a branch has no context and can't have been sampled")
    if not np.logical_or.reduceat(loss_mask, starts).all():
        raise ContractError(f"{name}: no token of a branch was sampled by the policy")
    if (turn[starts[1:]] <= turn[starts[1:] - 1]).any():
        raise ContractError(f"{name}: a branch must begin a turn")
