"""Which replicas exist, where they listen and which policy version each one serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving_bridge.database import open_database, transaction


@dataclass(frozen=True)
class ReplicaRow:
    """What the fleet controller last said of a replica; read by rollout workers to route requests.

    Attributes:
      state: "ready" takes requests; any other state doesn't.
      version: policy version it serves, -1 before the first verified one.
      step: optimizer steps behind that version.
    """

    name: str
    url: str
    state: str
    version: int
    step: int
    heartbeat_s: float


class ReplicaRegistry:
    """The table of replicas in the run's database.

    Args:
      max_silence_s: a replica whose controller has been silent for longer is not counted as ready.
    """

    def __init__(self, path: str | Path, *, max_silence_s: float = 30.0, clock: Callable[[], float] = time.time):
        self._db = open_database(path)
        self._max_silence_s = max_silence_s
        self._clock = clock

    def close(self) -> None:
        self._db.close()

    def report(self, name: str, *, url: str, state: str, version: int, step: int) -> None:
        """Writes a replica's row; also its heartbeat."""
        with transaction(self._db) as db:
            db.execute(
                "INSERT OR REPLACE INTO replicas VALUES (?, ?, ?, ?, ?, ?)",
                (name, url, state, version, step, self._clock()),
            )

    def remove(self, name: str) -> None:
        with transaction(self._db) as db:
            db.execute("DELETE FROM replicas WHERE name = ?", (name,))

    def replicas(self) -> list[ReplicaRow]:
        rows = self._db.execute("SELECT name, url, state, version, step, heartbeat_s FROM replicas ORDER BY name")
        return [ReplicaRow(*row) for row in rows]

    def ready(self) -> list[ReplicaRow]:
        """Replicas that take requests now."""
        oldest = self._clock() - self._max_silence_s
        return [row for row in self.replicas() if row.state == "ready" and row.heartbeat_s >= oldest]
