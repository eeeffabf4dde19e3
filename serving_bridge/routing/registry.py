"""Which replicas exist, where they listen and which policy version each one serves: one small file per replica.

The files lie beside the weights, on the one path that learner, rollout workers and serving hosts all see. Rollout
workers write one file each as well: how many of their requests each replica answered.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import msgspec

from learner_jax.contracts import MAX_RECORD_TEXT, MAX_STEP, MAX_VERSION, quoted
from learner_jax.runtime import PLAIN_NAME, PlainFileError, make_folder, read_plain, write_whole
from serving_bridge.routing.lifecycle import TAKES_REQUESTS
from serving_bridge.storage import is_url

#: beside the rows, for this user only; see `access.FleetKeys`
KEYS_FOLDER = "keys"
#: in place of an arm's name: the replica is on its way to another version, and takes requests only where no other can
LEAVING = "leaving"


Name = Annotated[str, msgspec.Meta(pattern=rf"\A{PLAIN_NAME.pattern}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=8 * MAX_RECORD_TEXT)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e11)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
#: A server of the fleet: no path, no credentials, nothing else that a request could be sent to; "" while it has none.
_HOST = r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])"
_Url = Annotated[str, msgspec.Meta(pattern=rf"\A(http://{_HOST}(:[0-9]{{1,5}})?)?\Z")]
_MAX_BYTES = 2**20

Record = TypeVar("Record")


def registry_folder(weights: str, directory: Path) -> Path:
    """Folder of the list of a run's replicas: beside its weights, or in its directory where these are no folder.

    Args:
      weights: path or URL of the weight store, empty for the one in the run's directory.
    """
    beside = directory if is_url(weights) else Path(weights or directory / "weights")
    return beside / "replicas"


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
      arm: of a fleet that follows aliases: the one whose traffic it takes, or `LEAVING`; "" in other fleets.
    """

    name: Name
    url: _Url
    state: Annotated[str, msgspec.Meta(pattern=r"\A[a-z]{1,32}\Z")]
    version: Annotated[int, msgspec.Meta(ge=-1, le=MAX_VERSION)]
    step: Annotated[int, msgspec.Meta(ge=-1, le=MAX_STEP)]
    heartbeat_s: Seconds
    fleet: Text = ""
    reason: Text = ""
    start: Text = ""
    arm: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{0,40}\Z")] = ""


class _Requests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout worker's running totals, replica -> (succeeded, failed)."""

    worker: Name
    totals: dict[Name, tuple[_Count, _Count]]


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
        arm: str = "",
    ) -> None:
        """Writes a replica's row, by atomic rename; also its heartbeat."""
        reason = quoted(reason, MAX_RECORD_TEXT)
        row = ReplicaRow(name, url, state, version, step, self._clock(), fleet, reason, start, arm)
        write_file(self._folder / f"{name}.json", msgspec.json.encode(row))

    def remove(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def replicas(self) -> list[ReplicaRow]:
        # One that can't be read was removed since it was listed; or is damaged, until the controller writes it again.
        found = [(path.stem, read_record(path, ReplicaRow)) for path in sorted(self._folder.glob("*.json"))]
        return [
            row for name, row in found if row is not None and row.name == name and (not row.url or is_nearby(row.url))
        ]

    def ready(self) -> list[ReplicaRow]:
        """Replicas that take requests now: the healthy ones, or the suspect ones where there are none."""
        found = self.replicas()
        for state in TAKES_REQUESTS:
            if rows := [row for row in found if row.url and self.state(row) == state]:
                return rows
        return []

    def usable(self) -> list[ReplicaRow]:
        """As `ready`, with the suspect ones beside the healthy ones: for who knows which of them is good for what."""
        return [row for row in self.replicas() if row.url and self.state(row) in TAKES_REQUESTS]

    def state(self, row: ReplicaRow) -> str:
        """A row's state, or "silent" if its controller has not written it for too long to still be believed; or says
        that it did so in the future, which would be believed for ever."""
        return row.state if abs(row.heartbeat_s - self._clock()) <= self._max_silence_s else "silent"

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
            report = read_record(path, _Requests)
            if report is None or report.worker != path.stem:
                continue  # removed since it was listed; or damaged, until the worker writes it again
            for replica, (succeeded, failed) in report.totals.items():
                before = sums.get(replica, (0, 0))
                sums[replica] = (before[0] + succeeded, before[1] + failed)
        return sums


def is_nearby(url: str) -> bool:
    """Whether a server's address is a name, or an address of a private network: prompts go nowhere else."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return bool(host)
    return address.is_private and not address.is_unspecified


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """What a small JSON file holds; None if it is missing, no regular file, too large, or no such record."""
    try:
        return msgspec.json.decode(read_plain(path.parent, path.name, max_bytes=_MAX_BYTES), type=kind)
    except (FileNotFoundError, PlainFileError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def write_file(path: Path, payload: bytes) -> None:
    """Replaces a small file by atomic rename: who reads it finds the old or the new one whole."""
    make_folder(path.parent)
    write_whole(path, payload)
