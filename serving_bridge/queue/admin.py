"""The operators' side of the queue: what can be seen of it, and what a person may do to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from learner_jax.contracts import prompt_index
from serving_bridge.database import Database, empty_log
from serving_bridge.queue import rows
from serving_bridge.queue import view as queue_view
from serving_bridge.queue.payloads import Payloader
from serving_bridge.queue.view import Overview, Progress


class QueueAdmin:
    """What people and tools do with the queue, beside those that work with it."""

    def __init__(self, database: Database, payloads: Payloader, *, clock: Callable[[], float]):
        self._db, self._payloads, self._clock = database, payloads, clock

    def progress(self) -> Progress:
        return self._db.read(queue_view.progress)

    def overview(self) -> Overview:
        """All that can be seen; costs more than `progress`."""
        return self._db.read(queue_view.overview)

    def dead_letters(self) -> list[tuple[str, str]]:
        """(group id, reason) of every dead letter."""
        return [(letter.group_id, letter.reason) for letter in self.overview().dead]

    def requeue(self, group_ids: Sequence[str] | None = None) -> list[str]:
        """Gives dead letters another chance, as if they had come now; None: all. Returns the ids of those that were."""
        now = self._clock()
        return self._db.write(lambda session: rows.requeue(session, group_ids, now))

    def erase(self, group_ids: Sequence[str], reason: str) -> bool:
        """Takes the payloads of groups away, in rows and files, and ends those that nobody works on.

        Returns:
          whether nothing of them is left: False while other processes read older states of the database's file, or
          where files are in a place that this process was not told of. A server cleans its own files in its own time.
        """
        now, indices = self._clock(), [prompt_index(group_id) for group_id in group_ids]
        files = self._db.write(lambda session: rows.erase(session, group_ids, indices, now=now, reason=reason))
        self._payloads.release(files)
        return empty_log(self._db) and not (files and self._payloads.blobs is None)

    def sweep_blobs(self) -> int:
        """Takes back files that a process left behind that died; returns how many. `recover` does so too."""
        return self._payloads.sweep(self._db.read(rows.wanted_files), self._clock())
