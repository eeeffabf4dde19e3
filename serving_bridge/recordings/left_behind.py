"""Recorded answers that killed gateways of this host had not brought to the database yet."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from serving_bridge.processes import LeftJournal, left_journals
from serving_bridge.recordings.records import Kept
from serving_bridge.recordings.store import RecordingStore


def lines_of(left: LeftJournal) -> list[tuple[bytes, Kept]]:
    """The lines of a journal, as they stand and as they read; the last one may be cut off."""
    found = []
    for content in left.lines:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            found.append((content, msgspec.json.decode(content, type=Kept)))
    return found


def settle_journals(store: RecordingStore, spool: Path) -> int:
    """Brings them to the database, where nothing is stored of what was withdrawn; returns how many answers that were.

    Raises:
      DatabaseError: the database is away; nothing is lost.
    """
    answers = 0
    for left in left_journals(spool):
        try:
            lines = [line for _, line in lines_of(left)]
            if lines:
                store.write(lines)
            left.remove()
        finally:
            left.close()
        answers += sum(len(line.answers) for line in lines)
    return answers
