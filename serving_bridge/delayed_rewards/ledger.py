"""Which rewards are awaited, which came, and which came for nothing: functions inside one transaction.

A holder (a group of answers) awaits one reward for each of its subjects (trajectories). The first reward that comes for
a subject within its window joins it, whatever it is called; nothing changes or replaces it afterwards. Everything else
that comes is counted, and kept where it says something new:

| outcome | what came | kept |
|---|---|---|
| joined | the first reward of a subject, within its window | with the subject |
| duplicate | a reward that came before, the same again | no |
| conflict | a reward that came before, under the same name with another value | yes |
| extra | another reward of a subject that has one | yes |
| late | a reward of a subject whose window has closed | yes |
| unknown | a reward of a subject that nobody awaits; it joins if that one comes after it | yes |

All locks are taken by holder first, in the order of their numbers, so that two transactions never both see the other's
reward as missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from serving_bridge.database import Session, marks, pieces
from serving_bridge.delayed_rewards.arrival import Arrival

Outcome = Literal["joined", "duplicate", "conflict", "extra", "late", "unknown"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

#: Rewards kept that joined nothing: the newest. An early one is found only among them.
MAX_KEPT = 10_000
#: Subjects that await nothing any more and are remembered, so that what comes again is known.
_MAX_REMEMBERED = 100_000
#: Kept rewards whose subject waits for one.
_EARLY = (
    "FROM kept_rewards AS kept JOIN awaited_rewards AS awaited ON awaited.subject = kept.subject "
    "WHERE kept.outcome = 'unknown' AND awaited.state = 'waiting' AND kept.received_s <= awaited.due_s"
)


@dataclass(frozen=True)
class Awaited:
    """A subject that a reward is awaited for.

    Attributes:
      due_s: end of its window, wall clock.
    """

    subject: str
    holder: str
    due_s: float


@dataclass(frozen=True)
class JoinedReward:
    value: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class KeptReward:
    """A reward that joined nothing; `received_s` is wall clock."""

    subject: str
    reward_id: str
    value: float
    parts: Mapping[str, float]
    outcome: Outcome
    received_s: float


@dataclass
class _Known:
    """What the rows say of a subject, kept up to date while a batch goes through."""

    holder: str
    due_s: float
    state: str
    reward_id: str | None
    value: float | None


def expect(session: Session, awaited: Iterable[Awaited]) -> None:
    """From now on a reward is awaited for each subject; those known already stay as they are.

    Rewards that came before are joined at once.
    """
    rows = [(one.subject, one.holder, one.due_s) for one in awaited]
    session.executemany(
        "INSERT INTO awaited_rewards (subject, holder, due_s, state) VALUES (?, ?, ?, 'waiting') "
        "ON CONFLICT (subject) DO NOTHING",
        rows,
    )
    for piece in pieces([subject for subject, _, _ in rows]):
        _join_kept(session, f"kept.subject IN ({marks(piece)})", piece)
    _forget(session)


def join(session: Session, arrivals: Sequence[Arrival], now: float) -> list[Outcome]:
    """What became of each reward, in order; to be followed by `complete` for the holders of those that joined."""
    subjects = sorted({arrival.subject for arrival in arrivals})
    known = _locked(session, subjects)
    earlier = _kept_of(session, subjects)
    outcomes: list[Outcome] = []
    for arrival in arrivals:
        outcome = _outcome(arrival, known.get(arrival.subject), earlier, now)
        outcomes.append(outcome)
        if outcome == "joined":
            _give(session, arrival)
            row = known[arrival.subject]
            row.state, row.reward_id, row.value = "joined", arrival.reward_id, arrival.value
        elif outcome != "duplicate" and (arrival.subject, arrival.reward_id) not in earlier:
            earlier[arrival.subject, arrival.reward_id] = arrival.value
            _keep(session, arrival, outcome, now)
    _count(session, Counter(outcomes))
    _trim(session)
    return outcomes


def join_kept(session: Session) -> list[str]:
    """Joins kept rewards to subjects that came after them; returns the subjects' holders.

    Only two processes at the same moment leave such: one stores the reward while the other stores what it is for.
    """
    return _join_kept(session, "1 = 1", ())


def any_early(session: Session) -> bool:
    """Whether `join_kept` would find something."""
    return bool(session.execute(f"SELECT 1 {_EARLY} LIMIT 1"))


def hold(session: Session, holders: Sequence[str]) -> None:
    """Makes others wait that would change these holders, until the transaction ends."""
    for piece in pieces(sorted(holders)):
        session.execute(
            f"SELECT subject FROM awaited_rewards WHERE holder IN ({marks(piece)}) ORDER BY sequence"
            + session.dialect.for_update,
            piece,
        )


def holders_of(session: Session, subjects: Sequence[str]) -> list[str]:
    """Holders of the subjects that are known, each once, in order."""
    found = {
        holder
        for piece in pieces(subjects)
        for (holder,) in session.execute(
            f"SELECT DISTINCT holder FROM awaited_rewards WHERE subject IN ({marks(piece)})", piece
        )
    }
    return sorted(found)


def complete(session: Session, holders: Sequence[str]) -> list[str]:
    """Those holders that wait for nothing any more, in order."""
    found = [
        holder
        for piece in pieces(holders)
        for (holder,) in session.execute(
            f"SELECT holder FROM awaited_rewards WHERE holder IN ({marks(piece)}) GROUP BY holder "
            "HAVING sum(CASE state WHEN 'waiting' THEN 1 ELSE 0 END) = 0",
            piece,
        )
    ]
    return sorted(found)


def overdue(session: Session, now: float, limit: int) -> list[str]:
    """Holders with a subject whose window has closed without a reward; some of them, in order."""
    rows = session.execute(
        "SELECT DISTINCT holder FROM awaited_rewards WHERE state = 'waiting' AND due_s < ? ORDER BY holder LIMIT ?",
        (now, limit),
    )
    return [holder for (holder,) in rows]


def end(session: Session, holders: Sequence[str]) -> None:
    """Closes the windows of holders: what comes for them from now on is late."""
    for piece in pieces(holders):
        session.execute(
            f"UPDATE awaited_rewards SET state = 'ended' WHERE holder IN ({marks(piece)}) AND state = 'waiting'", piece
        )


def rewards_of(session: Session, holder: str) -> dict[str, JoinedReward | None]:
    """What came for each subject of a holder; None where nothing did."""
    rows = session.execute("SELECT subject, state, value, parts FROM awaited_rewards WHERE holder = ?", (holder,))
    return {
        subject: JoinedReward(value, json.loads(parts)) if state == "joined" else None
        for subject, state, value, parts in rows
    }


def kept(session: Session, limit: int = MAX_KEPT) -> list[KeptReward]:
    """Rewards that joined nothing, newest first."""
    rows = session.execute(
        "SELECT subject, reward_id, value, parts, outcome, received_s FROM kept_rewards ORDER BY sequence DESC LIMIT ?",
        (limit,),
    )
    return [
        KeptReward(subject, name, value, json.loads(parts), outcome, at)
        for subject, name, value, parts, outcome, at in rows
    ]


def counts(session: Session) -> dict[Outcome, int]:
    """How many rewards had each outcome, from the first on; an unknown one that joined later counts as joined."""
    found: dict[str, int] = dict(session.execute("SELECT outcome, number FROM reward_counts"))
    return {outcome: found.get(outcome, 0) for outcome in OUTCOMES}


# Pieces of the above.


def _outcome(arrival: Arrival, row: _Known | None, earlier: Mapping[tuple[str, str], float], now: float) -> Outcome:
    """What becomes of a reward, by the rows of its subject and of what was kept."""
    before = earlier.get((arrival.subject, arrival.reward_id))
    if row is not None and row.reward_id == arrival.reward_id:
        before = row.value
    if before is not None:
        return "duplicate" if before == arrival.value else "conflict"
    if row is None:
        return "unknown"
    if row.state == "joined":
        return "extra"
    return "joined" if row.state == "waiting" and now <= row.due_s else "late"


def _locked(session: Session, subjects: Sequence[str]) -> dict[str, _Known]:
    """Rows of the subjects, whose holders nobody else changes until the transaction ends."""
    hold(session, holders_of(session, subjects))
    return {
        subject: _Known(*row)
        for piece in pieces(subjects)
        for subject, *row in session.execute(
            "SELECT subject, holder, due_s, state, reward_id, value FROM awaited_rewards "
            f"WHERE subject IN ({marks(piece)})",
            piece,
        )
    }


def _kept_of(session: Session, subjects: Sequence[str]) -> dict[tuple[str, str], float]:
    return {
        (subject, reward_id): value
        for piece in pieces(subjects)
        for subject, reward_id, value in session.execute(
            f"SELECT subject, reward_id, value FROM kept_rewards WHERE subject IN ({marks(piece)})", piece
        )
    }


def _give(session: Session, arrival: Arrival) -> None:
    session.execute(
        "UPDATE awaited_rewards SET state = 'joined', reward_id = ?, value = ?, parts = ? WHERE subject = ?",
        (arrival.reward_id, float(arrival.value), _packed(arrival.parts), arrival.subject),
    )


def _keep(session: Session, arrival: Arrival, outcome: Outcome, now: float) -> None:
    session.execute(
        "INSERT INTO kept_rewards (subject, reward_id, value, parts, outcome, received_s) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (subject, reward_id) DO NOTHING",
        (arrival.subject, arrival.reward_id, float(arrival.value), _packed(arrival.parts), outcome, now),
    )


def _join_kept(session: Session, where: str, parameters: Sequence[object]) -> list[str]:
    found = session.execute(f"SELECT DISTINCT awaited.holder {_EARLY} AND {where}", parameters)
    if not found:
        return []
    holders = sorted(holder for (holder,) in found)
    hold(session, holders)
    early = f"SELECT kept.subject, kept.reward_id, kept.value, kept.parts {_EARLY} AND {where} ORDER BY kept.sequence"
    joined: set[str] = set()
    for subject, reward_id, value, parts in session.execute(early, parameters):
        if subject in joined:
            session.execute(
                "UPDATE kept_rewards SET outcome = 'extra' WHERE subject = ? AND reward_id = ?", (subject, reward_id)
            )
            _count(session, {"unknown": -1, "extra": 1})
            continue
        joined.add(subject)
        _give(session, Arrival(subject, reward_id, value, json.loads(parts)))
        session.execute("DELETE FROM kept_rewards WHERE subject = ? AND reward_id = ?", (subject, reward_id))
        _count(session, {"unknown": -1, "joined": 1})
    return holders


def _count(session: Session, numbers: Mapping[Outcome, int]) -> None:
    session.executemany(
        "UPDATE reward_counts SET number = number + ? WHERE outcome = ?",
        [(number, outcome) for outcome, number in sorted(numbers.items())],
    )


def _trim(session: Session) -> None:
    """Forgets the oldest of the kept rewards beyond the bound."""
    session.execute(
        "DELETE FROM kept_rewards WHERE sequence <= (SELECT max(sequence) FROM kept_rewards) - ?", (MAX_KEPT,)
    )


def _forget(session: Session) -> None:
    """Forgets the oldest subjects that await nothing, beyond the bound."""
    session.execute(
        "DELETE FROM awaited_rewards WHERE state <> 'waiting' AND sequence <= "
        "(SELECT max(sequence) FROM awaited_rewards) - ?",
        (_MAX_REMEMBERED,),
    )


def _packed(parts: Mapping[str, float]) -> str:
    return json.dumps({name: float(value) for name, value in parts.items()}, sort_keys=True)
