"""What outlives simulated processes, in memory: the database, which forgets what was not synced, and the registry."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from serving_bridge.database import DatabaseError, DiskFullError, Session, open_database
from serving_bridge.routing import ReplicaRow
from tools.testing.simulate.loop import Process, ProcessDiedError

T = TypeVar("T")

_MAX_SILENCE_S = 30.0


class SimulatedRegistry:
    """The replica registry's interface as one process sees it; the rows are shared.

    Args:
      on_report: told of (name, URL, version) of each report.
    """

    def __init__(
        self,
        process: Process,
        rows: dict[str, ReplicaRow],
        totals: dict[str, dict[str, tuple[int, int]]],
        folder: Path,
        on_report: Callable[[str, str, int], None],
    ) -> None:
        self._process, self._rows, self._totals, self.folder = process, rows, totals, folder
        self._on_report = on_report

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
        self._process.check()
        self._on_report(name, url, version)
        now_s = self._process.wall_clock()
        self._rows[name] = ReplicaRow(name, url, state, version, step, now_s, fleet, reason, start, arm)

    def remove(self, name: str) -> None:
        self._process.check()
        self._rows.pop(name, None)

    def replicas(self) -> list[ReplicaRow]:
        return [self._rows[name] for name in sorted(self._rows)]

    def ready(self) -> list[ReplicaRow]:
        oldest_s = self._process.wall_clock() - _MAX_SILENCE_S
        fresh = [row for row in self.replicas() if row.heartbeat_s >= oldest_s]
        healthy = [row for row in fresh if row.state == "healthy"]
        return healthy or [row for row in fresh if row.state == "suspect"]

    def report_requests(self, worker: str, totals: Mapping[str, tuple[int, int]]) -> None:
        self._process.check()
        self._totals[worker] = dict(totals)

    def all_request_totals(self) -> dict[str, tuple[int, int]]:
        sums: dict[str, tuple[int, int]] = {}
        for totals in self._totals.values():
            for replica, (succeeded, failed) in totals.items():
                before = sums.get(replica, (0, 0))
                sums[replica] = before[0] + succeeded, before[1] + failed
        return sums

    def request_totals(self, replica: str) -> tuple[int, int]:
        return self.all_request_totals().get(replica, (0, 0))


class SharedDatabase:
    """The file that all processes share, and what of it a power failure leaves."""

    def __init__(self) -> None:
        self.real = open_database(":memory:")
        self._connection: Any = self.real._connection  # type: ignore[attr-defined]
        #: the database before the first transaction that is not synced yet; None while all are
        self._synced: bytes | None = None

    @property
    def is_synced(self) -> bool:
        """Whether a power failure would take nothing."""
        return self._synced is None

    def write(self, work: Callable[[Session], T], *, synced: bool) -> T:
        if not synced and self._synced is None:
            self._synced = self._connection.serialize("main")
        result = self.real.write(work)
        if synced:
            self._synced = None
        return result

    def fail(self, draws: random.Random) -> None:
        """The power fails: transactions that were not synced are gone, or happen to be there."""
        if self._synced is not None and draws.random() < 0.7:
            self._connection.deserialize("main", self._synced)
        self._synced = None


#: what may happen to one transaction; drawn for each
DATABASE_FATES = ("ok", "twice", "full", "broken", "uncertain", "crash before commit", "crash after commit")


class SimulatedDatabase:
    """One process's connection; implements `serving_bridge.database.database.Database`.

    Args:
      draw_fate: one of `DATABASE_FATES` for the next transaction that writes.
      crash: ends the process, or more.
      audit: called after every commit.
    """

    def __init__(
        self,
        shared: SharedDatabase,
        process: Process,
        *,
        draw_fate: Callable[[], str],
        crash: Callable[[Process], None],
        audit: Callable[[Process], None],
    ) -> None:
        self.name = ":memory:"
        self._shared, self._process = shared, process
        self._draw_fate, self._crash, self._audit = draw_fate, crash, audit

    def write(self, work: Callable[[Session], T], *, synced: bool = True) -> T:
        self._process.check()
        match fate := self._draw_fate():
            case "full":
                raise DiskFullError("disk full on purpose")
            case "broken":
                raise DatabaseError("input/output error on purpose")
            case "twice" | "crash before commit":
                self._undone(work)
                if fate != "twice":
                    self._die()
        result = self._shared.write(work, synced=synced)
        self._audit(self._process)
        if fate == "crash after commit":
            self._die()
        if fate == "uncertain":
            raise DatabaseError("the connection was lost while the transaction was being committed")
        return result

    def read(self, work: Callable[[Session], T]) -> T:
        self._process.check()
        return self._shared.real.read(work)

    def close(self) -> None:
        """The connection that all share stays open."""

    def _undone(self, work: Callable[[Session], T]) -> None:
        class _UndoneError(Exception):
            pass

        def run_and_fail(session: Session) -> None:
            work(session)
            raise _UndoneError

        try:
            self._shared.real.write(run_and_fail)
        except _UndoneError:
            return

    def _die(self) -> None:
        self._crash(self._process)
        raise ProcessDiedError(self._process.name)
