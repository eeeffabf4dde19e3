"""Which leased groups a step may train on: those that the versions published so far can have sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner_jax.contracts import NOT_SAMPLED, Trajectory


def refusal(
    group: Sequence[Trajectory], *, trained_version: int, max_staleness: int, online_staleness: int | None = None
) -> str | None:
    """Why a group must not be trained on; None if it may.

    Args:
      trained_version: the newest version that this learner published.
      max_staleness: versions that the group's oldest token may lag behind it.
      online_staleness: the same for groups of users' sessions; None treats them as all others.
    """
    versions = np.concatenate([trajectory.policy_version for trajectory in group])
    newest = int(versions.max())
    if newest > trained_version:
        return (
            f"sampled by version {newest}, which this learner never published: its newest is {trained_version}; look "
            f"for another learner or fleet that uses the same folder (store.weights)"
        )
    oldest = int(versions[versions != NOT_SAMPLED].min())
    is_online = online_staleness is not None and all(trajectory.source == "online" for trajectory in group)
    if trained_version - oldest > (online_staleness if is_online and online_staleness is not None else max_staleness):
        return f"stale at version {trained_version}: its oldest token is of version {oldest}"
    return None


def admitted(
    groups: Sequence[list[Trajectory]],
    *,
    trained_version: int,
    max_staleness: int,
    online_staleness: int | None = None,
) -> tuple[list[list[Trajectory]], dict[str, str]]:
    """(groups that may be trained on, reason of every other by its id)."""
    taken, refused = [], {}
    for group in groups:
        reason = refusal(
            group,
            trained_version=trained_version,
            max_staleness=max_staleness,
            online_staleness=online_staleness,
        )
        if reason is None:
            taken.append(group)
        else:
            refused[group[0].group_id] = reason
    return taken, refused
