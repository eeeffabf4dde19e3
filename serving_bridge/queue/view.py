"""What can be seen of the queue: how full it is, who holds what, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving_bridge.database import Session
from serving_bridge.queue import rows
from serving_bridge.queue.states import ENDED, STATES, State


@dataclass(frozen=True)
class Progress:
    """What the learner has made known, and how full the queue is."""

    completed_steps: int
    trained_version: int
    finished: bool
    next_prompt: int
    num_ready: int
    num_leased: int
    num_trained: int
    num_acknowledged: int
    num_dropped: int
    num_dead: int
    num_claimed: int


@dataclass(frozen=True)
class StateRow:
    """Groups in one state.

    Attributes:
      num_groups: also those whose rows are gone.
      num_bytes: of payload.
      oldest_s: when the oldest with a row was put, wall clock; None without one.
    """

    state: State
    num_groups: int
    num_bytes: int
    oldest_s: float | None


@dataclass(frozen=True)
class LeaseRow:
    """What one consumer holds; `until_s` is when the first of its leases runs out, wall clock."""

    consumer: str
    num_groups: int
    until_s: float


@dataclass(frozen=True)
class ClaimRow:
    """What one worker works on; `until_s` is when the first of its claims runs out, wall clock."""

    worker: str
    num_prompts: int
    first: int
    last: int
    until_s: float


@dataclass(frozen=True)
class DeadLetter:
    group_id: str
    reason: str
    num_bytes: int
    tries: int
    put_s: float


@dataclass(frozen=True)
class Overview:
    """All of it at one moment.

    Attributes:
      watermark: every prompt below it has ended for good.
      num_blobs: rows whose payload is in a file.
    """

    progress: Progress
    watermark: int
    num_blobs: int
    states: list[StateRow]
    leases: list[LeaseRow]
    claims: list[ClaimRow]
    dead: list[DeadLetter]


def progress(session: Session) -> Progress:
    numbers, counts = rows.numbers(session), rows.counts(session)
    ((num_claimed,),) = session.execute("SELECT count(*) FROM claims")
    return Progress(
        completed_steps=numbers["completed_steps"],
        trained_version=numbers["trained_version"],
        finished=bool(numbers["finished"]),
        next_prompt=numbers["next_prompt"],
        num_ready=counts["ready"],
        num_leased=counts["leased"],
        num_trained=counts["trained"],
        num_acknowledged=counts["acknowledged"],
        num_dropped=counts["dropped"],
        num_dead=counts["dead"],
        num_claimed=num_claimed,
    )


def overview(session: Session) -> Overview:
    counts = rows.counts(session)
    held: Mapping[State, tuple[int, float]] = {
        state: (int(num_bytes), oldest)
        for state, num_bytes, oldest in session.execute(
            "SELECT state, sum(num_bytes), min(created_s) FROM groups GROUP BY state"
        )
    }
    leases = session.execute(
        "SELECT coalesce(leased_by, ''), count(*), min(lease_expires_s) FROM groups WHERE state = 'leased' "
        "GROUP BY leased_by ORDER BY leased_by"
    )
    claims = session.execute(
        "SELECT worker, count(*), min(prompt_index), max(prompt_index), min(expires_s) FROM claims "
        "GROUP BY worker ORDER BY worker"
    )
    dead = session.execute(
        "SELECT group_id, coalesce(reason, ''), num_bytes, tries, created_s FROM groups WHERE state = 'dead' "
        "ORDER BY sequence"
    )
    states = []
    for state in STATES:
        num_bytes, oldest = held.get(state, (0, None))
        states.append(StateRow(state, counts[state], 0 if state in ENDED else num_bytes, oldest))
    return Overview(
        progress=progress(session),
        watermark=rows.get(session, "watermark"),
        num_blobs=sum(rows.wanted_files(session).values()),
        states=states,
        leases=[LeaseRow(*row) for row in leases],
        claims=[ClaimRow(*row) for row in claims],
        dead=[DeadLetter(*row) for row in dead],
    )
