"""Which replicas exist, where they listen and which policy version each one serves: one small file per replica.

The files lie beside the weights, on the one path that learner, rollout workers and serving hosts all see. Rollout
workers write one file each as well: how many of their requests each replica answered.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from serving_bridge.lifecycle import TAKES_REQUESTS

#: beside the rows, for this user only; see `access.FleetKeys`
KEYS_FOLDER = "keys"


class ReplicaRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the fleet controller last said of a replica; read by rollout workers to route requests.

    Attributes:
      state: one of `lifecycle.STATES`; "healthy" takes requests, "suspect" where nothing is healthy.
      version: policy version it serves, -1 before the first verified one.
      step: optimizer steps behind that version.
      heartbeat_s: when this was written, seconds since the epoch by the serving host's clock.
      fleet: whose replica it is, by the controller's name.
      reason: why it is in this state, where that needs words.
      start: names the start of its server, whose tokens are made from it (`access`).
    """

    name: str
    url: str
    state: str
    version: int
    step: int
    heartbeat_s: float
    fleet: str = ""
    reason: str = ""
    start: str = ""


class _Requests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout worker's running totals, replica -> (succeeded, failed)."""

    worker: str
    totals: dict[str, tuple[int, int]]


class ReplicaRegistry:
    """The replicas of one run.

    Args:
      folder: holds `<name>.json` per replica, and `requests/<worker>.json` per rollout worker.
      max_silence_s: a replica whose controller has been silent for longer is not counted as ready.
    """

    def __init__(self, folder: str | Path, *, max_silence_s: float = 30.0, clock: Callable[[], float] = time.time):
        self._folder = Path(folder)
        self._max_silence_s = max_silence_s
        self._clock = clock

    @property
    def folder(self) -> Path:
        return self._folder

    def report(
        self,
        name: str,
        *,
        url: str,
        state: str,
        version: int,
        step: int,
        fleet: str = "",
        reason: str = "",
        start: str = "",
    ) -> None:
        """Writes a replica's row, by atomic rename; also its heartbeat."""
        row = ReplicaRow(name, url, state, version, step, self._clock(), fleet, reason, start)
        write_file(self._folder / f"{name}.json", msgspec.json.encode(row))

    def remove(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def replicas(self) -> list[ReplicaRow]:
        rows = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                rows.append(msgspec.json.decode(path.read_bytes(), type=ReplicaRow))
            except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
                continue  # removed since it was listed; or damaged, until the controller writes it again
        return rows

    def ready(self) -> list[ReplicaRow]:
        """Replicas that take requests now: the healthy ones, or the suspect ones where there are none."""
        found = self.replicas()
        for state in TAKES_REQUESTS:
            if rows := [row for row in found if self.state(row) == state]:
                return rows
        return []

    def state(self, row: ReplicaRow) -> str:
        """A row's state, or "silent" if its controller has not written it for too long to still be believed."""
        return row.state if row.heartbeat_s >= self._clock() - self._max_silence_s else "silent"

    def report_requests(self, worker: str, totals: Mapping[str, tuple[int, int]]) -> None:
        """Writes a rollout worker's running totals per replica, (succeeded, failed), by atomic rename."""
        payload = msgspec.json.encode(_Requests(worker, dict(totals)))
        write_file(self._folder / "requests" / f"{worker}.json", payload)

    def request_totals(self, replica: str) -> tuple[int, int]:
        """Requests to a replica that (succeeded, failed), over all workers; smaller after a worker began anew."""
        return self.all_request_totals().get(replica, (0, 0))

    def all_request_totals(self) -> dict[str, tuple[int, int]]:
        """`request_totals` of every replica that a worker named."""
        sums: dict[str, tuple[int, int]] = {}
        for path in sorted((self._folder / "requests").glob("*.json")):
            try:
                totals = msgspec.json.decode(path.read_bytes(), type=_Requests).totals
            except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
                continue  # removed since it was listed; or damaged, until the worker writes it again
            for replica, (succeeded, failed) in totals.items():
                before = sums.get(replica, (0, 0))
                sums[replica] = (before[0] + succeeded, before[1] + failed)
        return sums


def write_file(path: Path, payload: bytes) -> None:
    """Replaces a small file by atomic rename: who reads it finds the old or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(payload)
    os.replace(temporary, path)
