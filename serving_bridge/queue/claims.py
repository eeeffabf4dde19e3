"""Claims: which worker plays which prompt, until its group is put or the claim runs out and is handed on."""

from __future__ import annotations

from collections.abc import Sequence

from learner_jax.contracts import MAX_PROMPT_INDEX
from serving_bridge.database import Session
from serving_bridge.queue.rows import get, put
from serving_bridge.queue.staleness import Pace, dispatch_room

#: Of claims that mean something: a row of another index was written by somebody else, and is nobody's work.
_IN_RANGE = f"prompt_index BETWEEN 0 AND {MAX_PROMPT_INDEX}"


def renew(session: Session, worker: str, expires_s: float) -> list[int]:
    """Prolongs a worker's claims; returns their prompts in order."""
    renewed = session.execute(
        f"UPDATE claims SET expires_s = ? WHERE worker = ? AND {_IN_RANGE} RETURNING prompt_index", (expires_s, worker)
    )
    return sorted(index for (index,) in renewed)


def expired(session: Session, now: float, limit: int, lock: str = "") -> list[int]:
    query = f"SELECT prompt_index FROM claims WHERE expires_s < ? AND {_IN_RANGE} ORDER BY prompt_index LIMIT ?{lock}"
    return [row[0] for row in session.execute(query, (now, limit))]


def room(session: Session, pace: Pace, served_step: int) -> int:
    """How many more prompts the gate lets through; all its numbers are of one moment."""
    ((completed, outstanding, running),) = session.execute(
        "SELECT (SELECT value FROM progress WHERE key = 'completed_steps'), "
        "(SELECT count(*) FROM groups WHERE state IN ('ready', 'leased')) + (SELECT count(*) FROM waiting_groups), "
        "(SELECT count(*) FROM claims)"
    )
    return dispatch_room(
        pace, completed_steps=completed, served_step=served_step, outstanding=outstanding, running=running
    )


def claim(
    session: Session, worker: str, limit: int, pace: Pace, *, served_step: int, now: float, expires_s: float
) -> list[int]:
    """Claims for a worker what others let expire, then new prompts."""
    start = get(session, "next_prompt", session.dialect.for_update)  # one at a time: what there is room for is counted
    handed_on = expired(session, now, limit, session.dialect.skip_locked)
    fresh = range(start, start + min(room(session, pace, served_step), limit - len(handed_on)))
    if fresh:
        put(session, next_prompt=fresh.stop)
    claimed: Sequence[int] = [*handed_on, *fresh]
    session.executemany(
        "INSERT INTO claims VALUES (?, ?, ?) "
        "ON CONFLICT (prompt_index) DO UPDATE SET worker = excluded.worker, expires_s = excluded.expires_s",
        [(index, worker, expires_s) for index in claimed],
    )
    return list(claimed)
