"""Which replicas exist, where they listen and which policy version each one serves: one small file per replica.

The files lie beside the weights, on the one path that learner, rollout workers and serving hosts all see.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec


class ReplicaRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the fleet controller last said of a replica; read by rollout workers to route requests.

    Attributes:
      state: "ready" takes requests; any other state doesn't.
      version: policy version it serves, -1 before the first verified one.
      step: optimizer steps behind that version.
      heartbeat_s: when this was written, seconds since the epoch by the serving host's clock.
    """

    name: str
    url: str
    state: str
    version: int
    step: int
    heartbeat_s: float


class ReplicaRegistry:
    """The replicas of one run.

    Args:
      folder: holds `<name>.json` per replica.
      max_silence_s: a replica whose controller has been silent for longer is not counted as ready.
    """

    def __init__(self, folder: str | Path, *, max_silence_s: float = 30.0, clock: Callable[[], float] = time.time):
        self._folder = Path(folder)
        self._max_silence_s = max_silence_s
        self._clock = clock

    def report(self, name: str, *, url: str, state: str, version: int, step: int) -> None:
        """Writes a replica's row, by atomic rename; also its heartbeat."""
        row = ReplicaRow(name, url, state, version, step, self._clock())
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{name}.{os.getpid()}"
        temporary.write_bytes(msgspec.json.encode(row))
        os.replace(temporary, self._folder / f"{name}.json")

    def remove(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def replicas(self) -> list[ReplicaRow]:
        rows = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                rows.append(msgspec.json.decode(path.read_bytes(), type=ReplicaRow))
            except FileNotFoundError:
                continue  # removed since it was listed
        return rows

    def ready(self) -> list[ReplicaRow]:
        """Replicas that take requests now."""
        oldest = self._clock() - self._max_silence_s
        return [row for row in self.replicas() if row.state == "ready" and row.heartbeat_s >= oldest]
