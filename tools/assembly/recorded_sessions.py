"""The database of recorded sessions and of feedback, opened whole: what is withdrawn there is withdrawn everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from serving_bridge.database import Database, open_database
from serving_bridge.feedback import FEEDBACK, clean_datasets, forget_sessions
from serving_bridge.recordings import RECORDINGS, RecordingStore


@contextmanager
def opened_recordings(url: str, *, timeout_s: float) -> Iterator[tuple[Database, RecordingStore]]:
    """The database, and the sessions in it.

    Raises:
      DatabaseError: it can't be opened.
    """
    open_database(url, timeout_s=timeout_s, schema=RECORDINGS).close()
    database = open_database(url, timeout_s=timeout_s, schema=FEEDBACK)
    try:
        after = [partial(clean_datasets, database)]
        yield database, RecordingStore(database, also=[forget_sessions], after=after)
    finally:
        database.close()
