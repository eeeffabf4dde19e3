"""The tenants as a gateway process has them: who sends a request, whether it may pass, and what is billed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from learner_jax.runtime import WeirError
from serving_bridge.database import Database, open_database
from serving_bridge.settings import Priority
from serving_bridge.tenants.admission import Admission, Ask, Ticket
from serving_bridge.tenants.answers import Answers
from serving_bridge.tenants.directory import Directory, check_scopes
from serving_bridge.tenants.exchange import Blocking, Exchange
from serving_bridge.tenants.fair_queue import QueueBounds
from serving_bridge.tenants.holdings import Holdings
from serving_bridge.tenants.journal import Journal, Left, left_behind
from serving_bridge.tenants.meter_rows import Bill, at_reservation
from serving_bridge.tenants.records import Caller
from serving_bridge.tenants.schema import TENANTS
from serving_bridge.tenants.secret import DeploymentSecret
from serving_bridge.tenants.shedding import Pressure
from serving_bridge.tenants.slices import SlicePolicy


@dataclass(frozen=True)
class TenantsPolicy:
    """How a gateway keeps its tenants; the same in all gateways of a deployment.

    Attributes:
      interval_s: between two exchanges with the database; also how soon a revoked key is refused.
      max_stale_s: how long keys are believed while the database is away, by `Directory`.
      answer_lease_s: an answer that nobody settled for so long is billed at its reservation.
      database_timeout_s: bound on waiting for the database.
    """

    slices: SlicePolicy = field(default_factory=SlicePolicy)
    queue: QueueBounds = field(default_factory=QueueBounds)
    interval_s: float = 1.0
    max_stale_s: float = 60.0
    answer_lease_s: float = 900.0
    database_timeout_s: float = 5.0


class Tenants:
    """What a gateway asks. `start` first, then `run` in a task of its own; `close` at the end.

    Args:
      url: of the database that all gateways share.
      spool: folder on a local disk for the journals of this host's gateways.
      name: of this process; never used twice. By default a random one.
      database: takes the place of `url`; its schema must be there.
      clock: monotonic; `wall`: for months and for the dates at which keys expire.
      blocking: runs a call that blocks, away from the event loop.
      on_failure: hears of every exchange with the database that failed.

    Raises:
      DatabaseError: the database can't be opened.
      OSError: the journal can't be made.
    """

    def __init__(
        self,
        url: str | Path,
        secret: DeploymentSecret,
        spool: Path,
        *,
        policy: TenantsPolicy | None = None,
        name: str = "",
        database: Database | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        blocking: Blocking = asyncio.to_thread,
        on_failure: Callable[[WeirError], None] = lambda error: None,
    ) -> None:
        policy = TenantsPolicy() if policy is None else policy
        self.name = name or f"gateway-{secrets.token_hex(8)}"
        self._db = (
            open_database(url, timeout_s=policy.database_timeout_s, schema=TENANTS) if database is None else database
        )
        self._owns_database = database is None
        self._blocking = blocking
        self._directory = Directory(self._db, secret, max_stale_s=policy.max_stale_s, clock=clock, wall=wall)
        self._left: Sequence[Left] = left_behind(spool) if spool.is_dir() else ()
        self._journal = Journal(spool, self.name)
        self._holdings = Holdings(policy.slices, Answers(self._journal, policy.answer_lease_s), clock())
        self._admission = Admission(self._directory, self._holdings, bounds=policy.queue, clock=clock, wall=wall)
        self._exchange = Exchange(
            self._db,
            self._directory,
            self._holdings,
            name=self.name,
            adopted=[left.gateway for left in self._left],
            interval_s=policy.interval_s,
            answer_lease_s=policy.answer_lease_s,
            clock=clock,
            blocking=blocking,
            on_failure=on_failure,
            on_success=self._admission.queue.serve,
        )

    @property
    def pressure(self) -> Pressure:
        """Takes measurements of the engines; call `serve` when one opened a class."""
        return self._admission.pressure

    def measured(self, *, kv: float, queue_s: float) -> None:
        """Takes over how full the engines are: part of the KV cache in use, and seconds that requests waited there."""
        if self.pressure.measured(kv=kv, queue_s=queue_s):
            self._admission.queue.serve()

    async def start(self) -> None:
        """Reads the keys, and settles what processes of this host left that were killed.

        Raises:
          DatabaseError: keys can't be read.
        """
        self._adopt()
        await self._blocking(self._directory.refresh)
        await self._exchange.once()

    async def run(self) -> None:
        """Keeps everything in step with the database until it is cancelled."""
        await self._exchange.run()

    async def close(self) -> None:
        """Ends in order: gives slices and budgets back, and writes the bills that are left.

        Open answers are settled at their reservation, so a gateway ends its answers first.
        """
        is_written = await self._exchange.leave()
        self._journal.close(remove=is_written)
        if self._owns_database:
            self._db.close()

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Who sends a request. Raises `BadKey`, `NotAllowed`, `Unavailable`."""
        return self._directory.authenticate(headers)

    def check(self, caller: Caller, route: str, model: str, priority: Priority | None = None) -> None:
        """Whether the caller's key is for this. Raises `NotAllowed`."""
        check_scopes(caller, model=model, route=route, priority=priority)

    def check_now(self, caller: Caller) -> None:
        """Refuses what can't pass, whatever it is; see `Admission.check_now` for what it raises."""
        self._admission.check_now(caller)

    async def admit(self, caller: Caller, ask: Ask, response_id: str, timeout_s: float) -> Ticket:
        """Leave for a request; see `Admission.admit` for what it raises."""
        return await self._admission.admit(caller, ask, response_id, timeout_s)

    def figures(self) -> dict[str, float]:
        """Numbers for metrics: answers that run, requests that wait by class, bills that are not written."""
        queue = self._admission.queue
        waiting = {f"waiting_{name}": float(number) for name, number in queue.waiting_by_class().items()}
        return {
            "running": float(len(self._holdings.answers)),
            "unwritten_bills": float(self._holdings.answers.num_unwritten),
            "cut_off": float(self._holdings.is_cut_off),
            "keys_age_s": self._directory.age_s,
            **waiting,
        }

    def _adopt(self) -> None:
        """Takes over what killed processes left: ended answers by their usage, open ones at their reservation."""
        for left in self._left:
            bills: list[Bill] = list(left.ended.values())
            bills += [(began, at_reservation(began)) for began in left.open.values()]
            self._holdings.answers.adopt(bills)
            left.remove()
        self._left = ()
