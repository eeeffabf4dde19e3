"""Rows that no operation of the queue wrote: found when one breaks a transaction, and made dead letters.

Whoever can write to the database can write anything there. What is only wrong is found when it is leased, and buried.
What breaks the statements themselves (text that is none, numbers that can't be counted on) is found here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from learner_jax.contracts import MAX_PROMPT_INDEX, ContractError, prompt_index, quoted
from serving_bridge.database import DamagedRowError, Database, Session
from serving_bridge.queue.blobs import is_blob_name
from serving_bridge.queue.states import ENDED

T = TypeVar("T")

_MAX_NUMBER = 2**53
_KEYS = (
    "completed_steps", "trained_version", "finished", "next_prompt", "saved_cursor", "consumer_epoch", "watermark",
    "blobs_id", "removed_acknowledged", "removed_dropped", "removed_dead",
)  # fmt: skip
_INDICES = ("next_prompt", "saved_cursor", "watermark")
_TEXTS = ("group_id", "blob", "blob_hash", "leased_by", "reason")
_NUMBERS = ("prompt_index", "priority", "tries", "lease_token", "num_bytes", "oldest_version")


class RepairingDatabase:
    """A database whose damaged rows end no transaction: they are put aside, and it is tried once more."""

    def __init__(self, inner: Database):
        self.inner = inner

    @property
    def name(self) -> str:
        return self.inner.name

    def write(self, work: Callable[[Session], T], *, synced: bool = True) -> T:
        try:
            return self.inner.write(work, synced=synced)
        except DamagedRowError:
            if not self.inner.write(repair):
                raise
            return self.inner.write(work, synced=synced)

    def read(self, work: Callable[[Session], T]) -> T:
        try:
            return self.inner.read(work)
        except DamagedRowError:
            if not self.inner.write(repair):
                raise
            return self.inner.read(work)

    def close(self) -> None:
        self.inner.close()


def repair(session: Session) -> int:
    """Puts aside what no statement may come upon; returns how many rows that were."""
    return _groups(session) + _progress(session) + _claims(session) + _sequence(session)


def _text(session: Session, column: str) -> str:
    """SQL for a column's bytes: SQLite takes text of any."""
    return f"CAST({column} AS BLOB)" if session.dialect.name == "sqlite" else column


def _decoded(value: Any) -> str | None:
    """Text of what `_text` gave; None where it is none."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _groups(session: Session) -> int:
    columns = ", ".join(_text(session, name) for name in _TEXTS)
    found = session.execute(f"SELECT sequence, state, {columns}, {', '.join(_NUMBERS)} FROM groups")
    bad = []
    for sequence, state, *values in found:
        texts, numbers = values[: len(_TEXTS)], dict(zip(_NUMBERS, values[len(_TEXTS) :], strict=True))
        decoded = [_decoded(value) for value in texts]
        if (reason := _problem(state, texts, decoded, numbers)) is not None:
            bad.append((sequence, decoded[0], numbers["prompt_index"], reason))
    for sequence, group_id, index, reason in bad:
        # What it was is not known: the state machine has no way from there.
        session.execute(
            "UPDATE groups SET group_id = ?, state = 'dead', prompt_index = ?, priority = 0, tries = 0, "
            "lease_token = 0, num_bytes = 0, oldest_version = 0, blob = NULL, blob_offset = NULL, blob_hash = NULL, "
            "leased_by = NULL, lease_expires_s = NULL, reason = ? WHERE sequence = ?",
            (
                group_id if _is_id(group_id) else f"damaged-{uuid.uuid4().hex}/0",
                index if 0 <= index <= MAX_PROMPT_INDEX else 0,
                f"the row was damaged: {reason}",
                sequence,
            ),
        )
        session.execute("DELETE FROM payloads WHERE sequence = ?", (sequence,))
    return len(bad)


def _problem(state: str, texts: list[Any], decoded: list[str | None], numbers: dict[str, int]) -> str | None:
    for name, raw, text in zip(_TEXTS, texts, decoded, strict=True):
        if raw is not None and text is None:
            return f"{name} is no text"
    for name, number in numbers.items():
        if not -_MAX_NUMBER <= number <= _MAX_NUMBER or (name in ("tries", "lease_token", "num_bytes") and number < 0):
            return f"{name} is {number}"
    if state not in (*ENDED, "dead") and not _is_id(decoded[0]):
        return f"{quoted(decoded[0], 80)} is no group id"
    if decoded[1] is not None and not is_blob_name(decoded[1]):
        return f"{quoted(decoded[1], 80)} is no name of a blob"
    return None


def _is_id(group_id: str | None) -> bool:
    try:
        prompt_index(group_id)
    except ContractError:
        return False
    return True


def _progress(session: Session) -> int:
    found = {
        _decoded(key) or "": value
        for key, value in session.execute(f"SELECT {_text(session, 'key')}, value FROM progress")
    }
    sound = {key: value for key, value in found.items() if key in _KEYS and _is_sound(key, value)}
    next_prompt = sound.get("next_prompt")
    if next_prompt is None:
        ((next_prompt,),) = session.execute(
            "SELECT coalesce(max(prompt_index), -1) + 1 FROM (SELECT prompt_index FROM groups "
            f"UNION ALL SELECT prompt_index FROM claims) AS known WHERE prompt_index BETWEEN 0 AND {MAX_PROMPT_INDEX}"
        )
    if sound.get("watermark", 0) > next_prompt:
        del sound["watermark"]
    wanted = {**dict.fromkeys(_KEYS, 0), "next_prompt": next_prompt, **sound}
    if wanted == found:
        return 0
    session.execute("DELETE FROM progress")
    session.executemany("INSERT INTO progress VALUES (?, ?)", list(wanted.items()))
    return sum(found.get(key) != value for key, value in wanted.items()) + len(found.keys() - wanted.keys())


def _is_sound(key: str, value: int) -> bool:
    if key == "blobs_id":
        return 0 <= value < 2**63
    return -1 <= value <= (MAX_PROMPT_INDEX + 1 if key in _INDICES else _MAX_NUMBER)


def _claims(session: Session) -> int:
    ((next_prompt,),) = session.execute("SELECT value FROM progress WHERE key = 'next_prompt'")
    gone = session.execute(
        "DELETE FROM claims WHERE prompt_index < 0 OR prompt_index >= ? RETURNING prompt_index", (next_prompt,)
    )
    bad = [
        (f"damaged-{uuid.uuid4().hex}", index)
        for index, worker in session.execute(f"SELECT prompt_index, {_text(session, 'worker')} FROM claims")
        if _decoded(worker) is None
    ]
    for name, index in bad:
        session.execute("UPDATE claims SET worker = ?, expires_s = -1 WHERE prompt_index = ?", (name, index))
    return len(gone) + len(bad)


def _sequence(session: Session) -> int:
    """Rows so high up that no number is left for the next one; on a server, numbers go on from the counter's."""
    gone = session.execute("DELETE FROM groups WHERE sequence > ? RETURNING sequence", (_MAX_NUMBER,))
    session.executemany("DELETE FROM payloads WHERE sequence = ?", [tuple(row) for row in gone])
    if session.dialect.name == "sqlite":
        session.execute(
            "UPDATE sqlite_sequence SET seq = (SELECT coalesce(max(sequence), 0) FROM groups) "
            "WHERE name = 'groups' AND seq > ?",
            (_MAX_NUMBER,),
        )
    return len(gone)
