"""Leases: which consumer trains on which group, until it says what became of it or the lease runs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving_bridge.database import Session, marks, pieces
from serving_bridge.queue.rows import ROW, Held, change, held
from serving_bridge.queue.states import State


@dataclass(frozen=True)
class LeasedRow:
    held: Held
    token: int


def can_lease(session: Session, now: float) -> bool:
    """Whether there may be something to lease, or to take back."""
    return bool(
        session.execute(
            "SELECT 1 FROM groups WHERE state = 'ready' OR (state = 'leased' AND lease_expires_s < ?) LIMIT 1", (now,)
        )
    )


def any_expired(session: Session, now: float) -> bool:
    """Whether a lease has run out."""
    return bool(session.execute("SELECT 1 FROM groups WHERE state = 'leased' AND lease_expires_s < ? LIMIT 1", (now,)))


def renew(session: Session, tokens: Mapping[str, int], expires_s: float) -> None:
    """Prolongs the leases that a consumer holds, also one that ran out and that nobody else took since."""
    session.executemany(
        "UPDATE groups SET lease_expires_s = ? "
        "WHERE group_id = ? AND lease_token = ? AND state = 'leased' RETURNING sequence",
        [(expires_s, group_id, token) for group_id, token in tokens.items()],
    )


def take_back_expired(session: Session, now: float, max_tries: int) -> None:
    ended, also = (now, max_tries), "reason = 'lease expired'"
    change(session, "exhaust", "lease_expires_s < ? AND tries >= ?", ended, also=also)
    change(session, "expire", "lease_expires_s < ? AND tries < ?", ended, also=also)


def take_ready(session: Session, count: int, *, consumer: str, expires_s: float, max_bytes: int) -> list[LeasedRow]:
    """Leases the foremost groups that nobody else is leasing just now: higher priority first, then older.

    Args:
      max_bytes: payloads up to it are read, those of rows; 0 for none.
    """
    rows = session.execute(
        f"SELECT sequence, {ROW} FROM groups WHERE state = 'ready' "
        "ORDER BY priority DESC, sequence LIMIT ?" + session.dialect.skip_locked,
        (count,),
    )
    found: dict[int, LeasedRow] = {}
    places = {sequence: place for sequence, *place in rows}
    for piece in pieces(list(places)):
        leased = change(
            session,
            "lease",
            f"sequence IN ({marks(piece)})",
            piece,
            also="tries = tries + 1, lease_token = lease_token + 1, lease_expires_s = ?, leased_by = ?",
            values=(expires_s, consumer),
            by_key=True,
        )
        payloads: dict[int, bytes] = {}
        if max_bytes and any(blob is None for _, _, _, blob, _, _ in places.values()):
            payloads = dict(
                session.execute(
                    f"SELECT * FROM payloads WHERE sequence IN ({marks(piece)}) AND length(payload) <= ?",
                    (*piece, max_bytes),
                )
            )
        for sequence, group_id, _, token in leased:
            found[sequence] = LeasedRow(held(group_id, places[sequence], payloads.get(sequence)), token)
    return [found[sequence] for sequence in places if sequence in found]


def payloads(session: Session, group_ids: Sequence[str], max_bytes: int) -> dict[str, Held]:
    """Leased groups by id, with payloads up to so many bytes."""
    return {
        group_id: held(group_id, place, payload)
        for piece in pieces(group_ids)
        for group_id, payload, *place in session.execute(
            f"SELECT group_id, CASE WHEN length(payload) <= ? THEN payload END, {ROW} "
            f"FROM groups LEFT JOIN payloads USING (sequence) WHERE state = 'leased' AND group_id IN ({marks(piece)})",
            (max_bytes, *piece),
        )
    }


def lease_of(session: Session, group_ids: Sequence[str]) -> dict[str, tuple[State, int, int]]:
    """(state, lease token, tries) by id of groups that are known; they stay so until the transaction ends."""
    return {
        group_id: (state, token, tries)
        for piece in pieces(group_ids)
        for group_id, state, token, tries in session.execute(
            f"SELECT group_id, state, lease_token, tries FROM groups WHERE group_id IN ({marks(piece)})"
            + session.dialect.for_update,
            piece,
        )
    }
