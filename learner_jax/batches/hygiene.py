"""Which answers and groups are learned from: zero-variance groups, answers too long, broken off or never judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from learner_jax.contracts import Trajectory
from learner_jax.losses import Part, columns, decoupled, overlong_penalty
from learner_jax.settings import GroupSettings


@dataclass(frozen=True)
class GroupCounts:
    """What was found and what was done about it, per batch.

    `zero_variance_groups` counts them whether or not they are dropped. `unjudged_groups` are those with failed verdicts
    and fewer than two valid answers left; all of them are dropped.
    """

    zero_variance_groups: int
    dropped_groups: int
    masked_overlong: int
    penalized_overlong: int
    masked_aborted: int
    failed_verdicts: int
    unjudged_groups: int


@dataclass(frozen=True)
class CleanedGroups:
    """One array per group, one entry per answer.

    Attributes:
      rewards: total reward, penalties included; NaN where the verdict failed, so that no sum can take it for a value.
      penalties: part of it taken away for length; at most 0.
      valid: whether the reward means something, so that the answer counts in its group's statistics.
      learned: whether the answer's tokens have a loss.
    """

    rewards: list[np.ndarray]
    penalties: list[np.ndarray]
    valid: list[np.ndarray]
    learned: list[np.ndarray]
    counts: GroupCounts


def clean_groups(
    groups: Sequence[Sequence[Trajectory]], settings: GroupSettings, parts: Mapping[str, Part] = MappingProxyType({})
) -> CleanedGroups:
    """Applies the settings to every group.

    Args:
      parts: of the reward that count in place of its sum, if there are any; see `losses.decoupled`.

    "drop" of zero-variance groups is DAPO's dynamic sampling seen from the learner (arXiv 2503.14476, section 3.2): the
    group has no advantage, and without dropping it still counts in the loss's denominator. "mask" of over-long
    answers is its overlong filtering (section 3.4): no loss, but the reward counts in the group's statistics.

    An answer whose verdict failed has neither loss nor reward. A group that is left with fewer than two valid answers
    by it compares nothing, and is dropped.
    """
    cleaned = [_clean_group(group, settings, parts) for group in groups]
    columns = [list(column) for column in zip(*cleaned, strict=True)]
    rewards, penalties, valid, learned, notes = columns
    return CleanedGroups(
        rewards=rewards,
        penalties=penalties,
        valid=valid,
        learned=learned,
        counts=GroupCounts(*(int(n) for n in np.sum(notes, axis=0))),
    )


def _clean_group(
    group: Sequence[Trajectory], settings: GroupSettings, parts: Mapping[str, Part]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    overlong = np.array([t.finish_reason == "length" for t in group])
    aborted = np.array([t.finish_reason == "abort" for t in group])
    penalties = np.zeros(len(group))
    if settings.overlong == "penalize":
        penalties = np.array([_penalty(t, settings) for t in group])
    judged = np.array([t.is_judged for t in group])
    valid = learned = ~aborted & judged
    rewards = np.array([t.total_reward if t.is_judged else np.nan for t in group], np.float64)
    if parts and valid.any():
        compared = [t.reward_parts for t, counts in zip(group, valid, strict=True) if counts]
        rewards = np.where(judged, 0.0, np.nan)
        rewards[valid] = decoupled(columns(compared, list(parts)), parts)
    rewards = rewards + penalties
    too_few = not judged.all() and valid.sum() < 2
    # Records are bounded; what a group's advantages can't be computed from must not cost the rest of the batch.
    is_finite = bool(np.isfinite(rewards[valid]).all())
    rewards = rewards if is_finite else np.where(valid, 0.0, rewards)
    if settings.overlong == "mask":
        learned = learned & ~overlong
    zero_variance = not too_few and len(set(rewards[valid])) <= 1
    dropped = (
        too_few
        or (zero_variance and settings.zero_variance == "drop")
        or (bool(aborted.any()) and settings.aborted == "drop_group")
    )
    dropped = dropped or not is_finite
    if dropped:
        learned = np.zeros(len(group), bool)
    notes = (
        int(zero_variance),
        int(dropped),
        int((overlong & judged).sum()) if settings.overlong == "mask" else 0,
        int((penalties < 0).sum()),
        int(aborted.sum()),
        int((~judged).sum()),
        int(too_few),
    )
    return rewards, penalties, valid, learned, notes


def _penalty(trajectory: Trajectory, settings: GroupSettings) -> float:
    """By the longest answer's sampled tokens against the limit of one answer; a dialog has an answer in each turn."""
    if trajectory.finish_reason == "abort" or not trajectory.is_judged:
        return 0.0
    length = int(np.bincount(trajectory.turn[trajectory.loss_mask]).max())
    limit = trajectory.sampling.get("max_tokens")
    if limit is None:  # then only that the limit was reached is known
        return -settings.overlong_penalty if trajectory.finish_reason == "length" else 0.0
    return overlong_penalty(
        length, limit=int(limit), buffer=settings.overlong_buffer_tokens, penalty=settings.overlong_penalty
    )
