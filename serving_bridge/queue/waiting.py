"""Groups of answers that wait for rewards: stored whole, changed by their rewards alone, released when those are there.

A waiting group counts as dispatched for the staleness gate, and holds up the watermark. It leaves in one transaction
with the reward, or the end of its window, that decides it: to the learner's groups, or dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from learner_jax.contracts import ContractError, Trajectory, decode_group, encode_group
from serving_bridge.database import Session, marks, pieces
from serving_bridge.delayed_rewards import (
    Awaited,
    JoinedReward,
    complete,
    end,
    expect,
    hold,
    rewards_of,
)
from serving_bridge.queue import rows
from serving_bridge.queue.rows import Record
from serving_bridge.queue.staleness import is_stale

#: From here on a reward is a pass, as for verifiers.
_PASS = 1.0 - 1e-6
#: Overdue groups that one transaction decides.
AT_ONCE = 32


@dataclass(frozen=True)
class Delay:
    """How long a group waits for rewards.

    Attributes:
      window_s: seconds from its arrival in the queue.
      timeout_score: reward of an answer for which none came by then; None leaves the answer out, as one that nobody
        judged.
    """

    window_s: float
    timeout_score: float | None = None


@dataclass(frozen=True)
class Awaiting:
    """A group on its way to those that wait; `subjects` are the ids of its trajectories without a reward."""

    record: Record
    subjects: tuple[str, ...]
    delay: Delay


@dataclass(frozen=True)
class Settled:
    """Ids of groups that wait no more."""

    released: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class WaitingGroup:
    """A group that waits, and how many of its answers have no reward yet; times are wall clock."""

    group_id: str
    prompt_index: int
    oldest_version: int
    put_s: float
    due_s: float
    num_bytes: int
    num_answers: int
    num_missing: int


def is_pending(group: Sequence[Trajectory]) -> bool:
    """Whether rewards of the group are still to come."""
    return any(trajectory.verdict == "pending" for trajectory in group)


def known(session: Session, group_ids: Sequence[str]) -> set[str]:
    """Those of the groups that wait."""
    return {
        group_id
        for piece in pieces(group_ids)
        for (group_id,) in session.execute(
            f"SELECT group_id FROM waiting_groups WHERE group_id IN ({marks(piece)})", piece
        )
    }


def insert(
    session: Session, groups: Sequence[Awaiting], *, priority: int, now: float, worker: str | None
) -> list[Record]:
    """Stores groups that wait, and ends their claims; returns those that were new.

    Rewards that came before are joined, and groups that then wait for nothing go on at once.

    Args:
      worker: whose claims the prompts of new groups must be; None lets it be.

    Raises:
      ContractError: a new group's prompt is not claimed by the worker.
    """
    watermark = rows.get(session, "watermark", session.dialect.for_share)
    seen = rows.known(session, [group.record.group_id for group in groups])
    new: list[Record] = []
    for group in sorted(groups, key=lambda group: group.record.prompt_index):
        record, delay = group.record, group.delay
        if record.prompt_index < watermark or record.group_id in seen:
            continue
        added = session.execute(
            "INSERT INTO waiting_groups VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (group_id) DO NOTHING "
            "RETURNING group_id",
            (
                record.group_id,
                record.prompt_index,
                priority,
                record.oldest_version,
                now,
                delay.window_s,
                delay.timeout_score,
                record.payload,
            ),
        )
        if added:
            new.append(record)
            expect(session, [Awaited(subject, record.group_id, now + delay.window_s) for subject in group.subjects])
    rows.end_claims(session, [group.record for group in groups], new, worker)
    release(session, [record.group_id for record in new], now)
    return new


def release(session: Session, group_ids: Sequence[str], now: float) -> Settled:
    """Lets those groups go that wait for nothing any more, with the rewards that came for them."""
    return _joined([_let_go(session, group_id, now) for group_id in complete(session, group_ids)])


def settle_overdue(session: Session, overdue: Sequence[str], now: float) -> Settled:
    """Decides groups whose window has closed: answers without a reward get the one for that, or are left out."""
    chosen = sorted(overdue)[:AT_ONCE]
    hold(session, chosen)
    end(session, chosen)
    return release(session, chosen, now)


def drop_stale(session: Session, trained_version: int, max_staleness: int, now: float) -> int:
    """Drops waiting groups that would be too far behind when they are released; returns how many."""
    versions = [
        oldest
        for (oldest,) in session.execute("SELECT DISTINCT oldest_version FROM waiting_groups")
        if is_stale(trained_version=trained_version, oldest_version=oldest, max_staleness=max_staleness)
    ]
    if not versions:
        return 0
    found = session.execute(
        f"SELECT group_id FROM waiting_groups WHERE oldest_version IN ({marks(versions)}) ORDER BY group_id",
        versions,
    )
    stale = [group_id for (group_id,) in found]
    hold(session, stale)
    end(session, stale)
    gone = [
        Record(group_id, prompt_index, oldest_version, b"")
        for piece in pieces(stale)
        for group_id, prompt_index, oldest_version in session.execute(
            f"DELETE FROM waiting_groups WHERE group_id IN ({marks(piece)}) "
            "RETURNING group_id, prompt_index, oldest_version",
            piece,
        )
    ]
    return len(
        rows.insert_dropped(session, gone, now=now, reason=f"stale at version {trained_version}, without reward")
    )


def any_stale(session: Session, trained_version: int, max_staleness: int) -> bool:
    """Whether `drop_stale` would find something."""
    return any(
        is_stale(trained_version=trained_version, oldest_version=oldest, max_staleness=max_staleness)
        for (oldest,) in session.execute("SELECT DISTINCT oldest_version FROM waiting_groups")
    )


def overview(session: Session, limit: int) -> list[WaitingGroup]:
    """Groups that wait, those that are due first."""
    return [
        WaitingGroup(*row)
        for row in session.execute(
            "SELECT group_id, prompt_index, oldest_version, put_s, put_s + window_s, length(payload), "
            "(SELECT count(*) FROM awaited_rewards WHERE holder = group_id), "
            "(SELECT count(*) FROM awaited_rewards WHERE holder = group_id AND state = 'waiting') "
            "FROM waiting_groups ORDER BY put_s + window_s, group_id LIMIT ?",
            (limit,),
        )
    ]


def payloads(session: Session, group_ids: Sequence[str]) -> dict[str, bytes]:
    """Payloads of waiting groups by id, as they were put."""
    return {
        group_id: payload
        for piece in pieces(group_ids)
        for group_id, payload in session.execute(
            f"SELECT group_id, payload FROM waiting_groups WHERE group_id IN ({marks(piece)})", piece
        )
    }


def with_rewards(
    group: Sequence[Trajectory], rewards: Mapping[str, JoinedReward | None], delay: Delay
) -> list[Trajectory]:
    """The group with its rewards, each at the last token of its answer; nothing else of it differs.

    What a reward brings is the target of learning, and never part of what the policy is shown.
    """
    return [
        _rewarded(trajectory, rewards.get(trajectory.trajectory_id), delay)
        if trajectory.verdict == "pending"
        else trajectory
        for trajectory in group
    ]


def _rewarded(trajectory: Trajectory, reward: JoinedReward | None, delay: Delay) -> Trajectory:
    if reward is None and delay.timeout_score is None:
        reason = f"no reward came within {delay.window_s:g} s (task.delayed.window_s)"
        return replace(trajectory, verdict="timeout", verdict_reason=reason)
    if reward is None:
        assert delay.timeout_score is not None
        reward = JoinedReward(delay.timeout_score, {"timed_out": 1.0})
    earned = np.zeros_like(trajectory.rewards)
    earned[-1] = reward.value
    return replace(
        trajectory,
        rewards=earned,
        reward_parts=dict(reward.parts),
        verdict="pass" if reward.value >= _PASS else "fail",
        verdict_reason="",
    )


def _let_go(session: Session, group_id: str, now: float) -> Settled:
    """Moves one group, if it still waits, to the learner's groups, or drops it."""
    gone = session.execute(
        "DELETE FROM waiting_groups WHERE group_id = ? "
        "RETURNING prompt_index, priority, oldest_version, window_s, timeout_score, payload",
        (group_id,),
    )
    if not gone:
        return Settled()
    ((prompt_index, priority, oldest_version, window_s, timeout_score, payload),) = gone
    delay = Delay(window_s, timeout_score)
    try:
        group = with_rewards(decode_group(payload), rewards_of(session, group_id), delay)
        payload = encode_group(group)
    except ContractError:
        group = []  # the learner's lease will say what is wrong, and bury it
    record = Record(group_id, prompt_index, oldest_version, payload)
    if not group or sum(trajectory.is_judged for trajectory in group) >= min(2, len(group)):
        rows.insert(session, [record], priority=priority, now=now)
        return Settled(released=(group_id,))
    rows.insert_dropped(session, [record], now=now, reason=f"too few rewards came within {window_s:g} s")
    return Settled(dropped=(group_id,))


def _joined(parts: Sequence[Settled]) -> Settled:
    return Settled(
        tuple(group_id for part in parts for group_id in part.released),
        tuple(group_id for part in parts for group_id in part.dropped),
    )
