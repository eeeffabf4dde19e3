"""Datasets without the lines of sessions that are not kept any more: their files anew, and the copies of runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from learner_jax.runtime import write_durably
from serving_bridge.database import Database, Session
from serving_bridge.feedback.copies import MANIFEST, clean_copies

#: names of a dataset's files without `.jsonl`
PARTS = ("train", "heldout")


def clean_datasets(database: Database) -> dict[str, int]:
    """Removes the lines of sessions that are not kept any more; returns how many, by dataset.

    Examples that runs keep of a dataset go with its lines. What can't be reached, or is damaged, is tried again with
    the next call.
    """
    removed: dict[str, int] = {}
    for (name, folder), session_ids in _still_there(database).items():
        try:
            with _alone(Path(folder)):
                number = _stripped(Path(folder), session_ids)
                reached = number is not None and clean_copies(Path(folder), session_ids)
        except (OSError, msgspec.MsgspecError, LookupError, TypeError):
            continue  # the others must be cleaned all the same
        if number:
            removed[name] = number
        if not reached:
            continue
        database.write(partial(_mark_removed, name=name, session_ids=sorted(session_ids)))
    return removed


def uncleaned_datasets(database: Database) -> list[str]:
    """Folders of datasets that still have lines of sessions that are not kept any more, or runs that have."""
    return sorted(folder for _, folder in _still_there(database))


def _still_there(database: Database) -> dict[tuple[str, str], set[str]]:
    """(dataset, folder) -> sessions whose lines must go."""
    rows = database.read(
        lambda session: session.execute(
            "SELECT d.name, d.folder, u.session_id FROM feedback_datasets d JOIN dataset_sessions u "
            "ON u.name = d.name LEFT JOIN recorded_sessions s ON s.session_id = u.session_id "
            "WHERE u.removed = 0 AND (s.state IS NULL OR s.state <> 'kept') ORDER BY d.name, u.session_id"
        )
    )
    gone: dict[tuple[str, str], set[str]] = {}
    for name, folder, session_id in rows:
        gone.setdefault((name, folder), set()).add(session_id)
    return gone


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """While no other process of this host cleans a folder: one would write back what the other removed."""
    file = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _stripped(place: Path, session_ids: set[str]) -> int | None:
    """Writes the files of a dataset anew without the lines of these sessions; returns how many lines went.

    None where the folder is not there: it can't be reached, or is being written.
    """
    if not (place / MANIFEST).is_file():
        return None
    manifest, removed = manifest_of(place), 0
    for part in PARTS:
        path = place / f"{part}.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if msgspec.json.decode(line)["session_id"] not in session_ids]
        removed += len(lines) - len(kept)
        if len(kept) < len(lines):
            write_durably(path, b"".join(kept))
            manifest["files"][part] = described(b"".join(kept))
    if removed:
        manifest["removed"] += removed
        write_durably(place / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    return removed


def described(content: bytes) -> dict[str, Any]:
    return {"examples": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}


def manifest_of(place: Path) -> dict[str, Any]:
    return msgspec.json.decode((place / MANIFEST).read_bytes())


def _mark_removed(session: Session, name: str, session_ids: Sequence[str]) -> None:
    session.executemany(
        "UPDATE dataset_sessions SET removed = 1 WHERE name = ? AND session_id = ?",
        [(name, session_id) for session_id in session_ids],
    )
