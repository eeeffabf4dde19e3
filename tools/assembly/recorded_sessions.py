"""The database of recorded sessions and of feedback, opened whole: what is withdrawn there is withdrawn everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from configs.load import load_config
from configs.schema import Config
from serving_bridge.database import Database, empty_log, is_postgres, open_database, sqlite_path
from serving_bridge.queue import TrajectoryQueue
from tools.assembly.paths import RunPaths, database_of, online_database, run_paths

if TYPE_CHECKING:
    from serving_bridge.recordings import RecordingStore

#: Folders in the run's directory: journals of recorded sessions, and what fallbacks left.
SESSIONS, FALLBACK = "sessions", "fallback"
#: A log that others read or write is tried again at the next purge.
_EMPTY_S = 0.5


@contextmanager
def opened_recordings(
    url: str, *, timeout_s: float, config: Config | None = None
) -> Iterator[tuple[Database, RecordingStore]]:
    """The database, and the sessions in it.

    Args:
      config: of the run; without it a withdrawal does not reach files that only the run's settings name.

    Raises:
      DatabaseError: it can't be opened.
    """
    # Here, since commands that record nothing import this file too.
    from serving_bridge.feedback import FEEDBACK, clean_datasets, erase_online, forget_sessions
    from serving_bridge.recordings import RECORDINGS, RecordingStore

    open_database(url, timeout_s=timeout_s, schema=RECORDINGS).close()
    database = open_database(url, timeout_s=timeout_s, schema=FEEDBACK, erases=True)
    try:
        store = RecordingStore(database, also=[forget_sessions], after=[partial(clean_datasets, database)])
        if config is not None:
            paths = run_paths(config)
            store.after += (
                partial(erase_online, database, config.run.name, partial(_online_queue, url, paths, timeout_s)),
                TextCleaner(store, paths.directory / FALLBACK),
            )
        store.after += (partial(empty_log, database, limit_s=_EMPTY_S),)
        yield database, store
    finally:
        database.close()


@contextmanager
def recordings_of(place: str, *, timeout_s: float) -> Iterator[tuple[Database, RecordingStore]]:
    """As `opened_recordings`, of a run's directory or the URL of a database."""
    file = Path(place) / "config.toml"
    config = load_config(file, []) if file.is_file() else None
    with opened_recordings(database_of(place), timeout_s=timeout_s, config=config) as found:
        yield found


class TextCleaner:
    """Called after each withdrawal and purge: removes the texts of fallbacks that may not be kept any more.

    Files that did not change since the last call are left alone; once an hour all are looked at.

    Args:
      clock: wall clock, seconds.
    """

    def __init__(self, store: RecordingStore, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._folder, self._clock = store, folder, clock
        self._seen: object = None

    def __call__(self) -> None:
        if not self._folder.is_dir():
            return
        from serving_bridge.fallback import Withdrawn, clean_texts

        withdrawn = [Withdrawn(*row) for row in self._store.withdrawals()]
        if (found := self._signature(len(withdrawn))) == self._seen:
            return
        try:
            clean_texts(self._folder, withdrawn, self._clock())
        except OSError:
            return  # tried again with the next call
        self._seen = found  # as it was before: what was added meanwhile is looked at with the next call

    def _signature(self, withdrawn: int) -> object:
        files = [(str(path), path.stat().st_mtime_ns) for path in sorted(self._folder.glob("*/*.jsonl"))]
        return withdrawn, int(self._clock() // 3600), files


@contextmanager
def _online_queue(url: str, paths: RunPaths, timeout_s: float) -> Iterator[TrajectoryQueue | None]:
    """The queue of the run's online groups; None where none was made."""
    place = online_database(url)
    if not is_postgres(place) and not sqlite_path(place).exists():
        yield None
        return
    queue = TrajectoryQueue(place, blobs=f"{paths.blobs}-online", erases=True, timeout_s=timeout_s)
    try:
        yield queue
    finally:
        queue.close()
