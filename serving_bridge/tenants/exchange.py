"""What a gateway exchanges with the database every second: slices, budgets, bills, and who is still there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from learner_jax.runtime import WeirError
from serving_bridge.database import Database, Session
from serving_bridge.tenants import allowances, meter_rows, slice_rows
from serving_bridge.tenants.allowances import NOTHING, AllowanceGrant, AllowanceOffer
from serving_bridge.tenants.directory import Directory
from serving_bridge.tenants.holdings import Holdings
from serving_bridge.tenants.journal import Began
from serving_bridge.tenants.meter_rows import Bill
from serving_bridge.tenants.slices import SliceGrant, SliceOffer

#: A gateway whose beat stood still for so many leases is taken for gone.
_GIVE_UP_LEASES = 2.0
#: Between two exchanges, where something new waits for the next one.
_SOONEST_S = 0.05

T = TypeVar("T")
Blocking = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class _Told:
    """What one exchange tells the database."""

    slices: Sequence[SliceOffer]
    allowances: Sequence[AllowanceOffer]
    opened: Sequence[Began]
    bills: Sequence[Bill]
    gone: Sequence[str]


@dataclass(frozen=True)
class _Heard:
    """What it brought back; `known` is whether the others still counted on this gateway."""

    known: bool
    slices: Sequence[SliceGrant]
    allowances: Sequence[AllowanceGrant]
    beats: Mapping[str, int]
    orphans: Sequence[str]


@dataclass
class _Watch(Generic[T]):
    """How long things have stood still, by this process's monotonic clock."""

    since: dict[T, float] = field(default_factory=dict)

    def longer(self, things: Sequence[T], limit_s: float, now: float) -> list[T]:
        """Those that have been among the things for longer than the limit, without a break."""
        self.since = {thing: self.since.get(thing, now) for thing in things}
        return [thing for thing, since_s in self.since.items() if now - since_s > limit_s]


class Exchange:
    """Keeps a gateway's holdings and the database in step; no request waits for it.

    Args:
      name: of this gateway process; never used twice.
      adopted: names of processes of this host that are gone, and whose bills this one writes.
      answer_lease_s: open answers of a gateway that is gone are settled at their reservation after so long.
      blocking: runs a call that blocks, away from the event loop.
      on_failure: hears of every exchange that failed.
      on_success: is called after every other one; shares may have grown.
    """

    def __init__(
        self,
        database: Database,
        directory: Directory,
        holdings: Holdings,
        *,
        name: str,
        adopted: Sequence[str] = (),
        interval_s: float = 1.0,
        answer_lease_s: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
        blocking: Blocking = asyncio.to_thread,
        on_failure: Callable[[WeirError], None] = lambda error: None,
        on_success: Callable[[], None] = lambda: None,
    ) -> None:
        self._db, self._directory, self._holdings = database, directory, holdings
        self._name, self._adopted = name, list(adopted)
        self._interval_s, self._answer_lease_s = interval_s, answer_lease_s
        self._clock, self._blocking, self._on_failure = clock, blocking, on_failure
        self._on_success = on_success
        self._beats: _Watch[tuple[str, int]] = _Watch()
        self._orphans: _Watch[str] = _Watch()
        self._late_orphans: list[str] = []
        self._silent: list[tuple[str, int]] = []
        self._last_s = clock()

    async def run(self) -> None:
        """Exchanges every interval, and soon after something new came up, until it is cancelled."""
        again = False
        while True:
            if not again:
                await self._holdings.wait_for_news(self._interval_s)
            await asyncio.sleep(_SOONEST_S)
            again = await self.once()

    async def once(self) -> bool:
        """One exchange; whether another should follow at once. A database that is away is no error here."""
        began_s = self._clock()
        self._holdings.answers.lapse(began_s)
        told = self._told(began_s)
        try:
            await self._blocking(self._directory.refresh)
            heard = await self._blocking(self._transact, told)
        except WeirError as error:
            self._on_failure(error)
            return False
        again = self._apply(told, heard, began_s)
        self._on_success()
        return again

    async def leave(self) -> bool:
        """Gives everything back at the end of the process; whether the database has all bills.

        What is still open is settled at its reservation.
        """
        now = self._clock()
        self._holdings.close_all(now)
        told = replace(self._told(now, leaving=True), gone=[*self._adopted, self._name])
        try:
            await self._blocking(self._transact, told)
        except WeirError as error:
            self._on_failure(error)
            return False
        self._holdings.answers.written(told.opened, told.bills)
        return True

    def _told(self, now: float, *, leaving: bool = False) -> _Told:
        opened, bills = self._holdings.answers.unwritten()
        billed = meter_rows.ids_by_scope(bills)
        slices, amounts = self._holdings.offers(now, now - self._last_s, billed, leaving=leaving)
        self._last_s = now
        return _Told(slices, amounts, opened, bills, list(self._adopted))

    def _transact(self, told: _Told) -> _Heard:
        return self._db.write(lambda session: self._work(session, told), synced=bool(told.opened or told.bills))

    def _work(self, session: Session, told: _Told) -> _Heard:
        known = slice_rows.beat(session, self._name)
        for gateway, at_beat in self._silent:
            slice_rows.give_up(session, gateway, at_beat)
        for gateway in told.gone:
            slice_rows.give_up(session, gateway)
        offers = (
            told.slices if known else [replace(offer, share=0.0, requests=0.0, tokens=0.0) for offer in told.slices]
        )
        slices = slice_rows.exchange(session, self._name, offers)
        for key in sorted(
            {*meter_rows.spent_by_scope(told.bills), *((offer.scope, offer.month) for offer in told.allowances)}
        ):
            allowances.add_spent(session, *key, NOTHING)  # in one order, so that two gateways don't block each other
        meter_rows.write_open(session, self._name, told.opened)
        meter_rows.write_bills(session, told.bills)
        grants = allowances.exchange(session, self._name, told.allowances)
        beats = slice_rows.beats(session)
        for gateway in (*told.gone, *(name for name in self._late_orphans if name not in beats)):
            left = meter_rows.left_open(session, gateway)
            meter_rows.write_bills(session, [(began, meter_rows.at_reservation(began)) for began in left])
            allowances.forget(session, gateway)
        return _Heard(known, slices, grants, beats, meter_rows.orphans(session))

    def _apply(self, told: _Told, heard: _Heard, began_s: float) -> bool:
        now = self._clock()
        holdings = self._holdings
        if not heard.known:
            holdings.lost(now)
        billed = meter_rows.ids_by_scope(told.bills)
        holdings.answers.written(told.opened, told.bills)
        again = holdings.granted(heard.slices, heard.allowances, billed, now)
        holdings.renewed(began_s)
        self._adopted.clear()
        others = [item for item in heard.beats.items() if item[0] != self._name]
        limit_s = _GIVE_UP_LEASES * holdings.policy.lease_s
        self._silent = self._beats.longer(others, limit_s, now)
        self._late_orphans = self._orphans.longer(heard.orphans, self._answer_lease_s, now)
        return again
