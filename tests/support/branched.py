"""Episodes with branches, for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from learner_jax.contracts.weights import NOT_SAMPLED, Trajectory
from tests.support.trajectories import make_group

#: the masks of two branches: p p a a o a, and p p a' a' (context: sampled in the first) o a
BRANCHES = ([0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1])


def branched(
    base: Trajectory, reward: float, masks: Sequence[Sequence[int]] = BRANCHES, *, first_version: int = 1, **fields: Any
) -> Trajectory:
    """An episode of one branch for each mask; tokens tell all places from one another, rewards stand at the end.

    The versions of its branches go up by one.
    """
    mask = np.concatenate([np.array(one, bool) for one in masks])
    of_branch = np.repeat(np.arange(len(masks)), [len(one) for one in masks])
    rewards = np.zeros(len(mask), np.float32)
    rewards[-1] = reward
    return dataclasses.replace(
        base,
        tokens=np.arange(1, len(mask) + 1, dtype=np.int32),
        loss_mask=mask,
        behavior_logprobs=np.where(mask, -np.arange(1, len(mask) + 1) / 100, 0).astype(np.float32),
        policy_version=np.where(mask, first_version + of_branch, NOT_SAMPLED).astype(np.int32),
        turn=of_branch.astype(np.int32),
        rewards=rewards,
        branch_tokens=tuple(len(one) for one in masks) if len(masks) > 1 else (),
        reward_parts={},
        **fields,
    )


def branched_group(rewards: Sequence[float], branches: Sequence[int], group_id: str = "run/0") -> list[Trajectory]:
    """Episodes with so many branches each: the first as `BRANCHES`, every further one as the second of them."""
    group = make_group(group_id, size=len(rewards))
    masks = [[BRANCHES[0]] + [BRANCHES[1]] * (count - 1) for count in branches]
    return [branched(*of_one) for of_one in zip(group, rewards, masks, strict=True)]
