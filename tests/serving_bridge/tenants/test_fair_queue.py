"""Who goes next: fairness by weight and tokens, classes in their order, and a neighbour that floods its line."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from serving_bridge.database import MEMORY, open_database
from serving_bridge.settings import PRIORITIES, Priority
from serving_bridge.tenants import TENANTS, Accounts, Ask, QueueBounds, Refusal, Shed, Tenants, TenantsPolicy
from serving_bridge.tenants.fair_queue import FairQueue
from serving_bridge.tenants.records import Limits
from serving_bridge.tenants.shedding import Pressure
from serving_bridge.tenants.slices import Slice, SlicePolicy
from tests.support.tenant_gateways import tenants_on
from tests.support.tenant_worlds import SECRET, bearer
from tests.support.virtual_time import run


class Line:
    """A queue with some places, and tenants that have no limits of their own."""

    def __init__(self, places: int, *, bounds: QueueBounds | None = None) -> None:
        policy = SlicePolicy(credit=1.0)
        self.everybody = Slice("deployment", Limits(concurrency=places), policy, 0.0)
        self.own = Slice("tenant:any", Limits(), policy, 0.0)
        self.closed: set[Priority] = set()
        self.queue = FairQueue(
            lambda: self.everybody,
            bounds=bounds,
            is_open=lambda priority: priority not in self.closed,
            clock=lambda: asyncio.get_running_loop().time(),
        )
        self.order: list[str] = []
        self.tokens: Counter[str] = Counter()

    async def request(
        self, tenant: str, cost: float = 10, *, priority: Priority = "paid", weight: int = 1, seconds: float = 1.0
    ) -> None:
        await self.queue.enter(tenant, self.own, priority, weight=weight, cost=cost, timeout_s=1e6)
        self.order.append(tenant)
        self.tokens[tenant] += int(cost)
        await asyncio.sleep(seconds)
        self.queue.leave(self.own)


async def all_of(*work) -> None:
    await asyncio.wait_for(asyncio.gather(*work), 1e6)


def test_tenants_share_by_weight_and_tokens_whatever_their_number_of_requests() -> None:
    line = Line(1, bounds=QueueBounds(per_tenant=10_000, all=10_000))

    async def scenario() -> None:
        requests = [line.request("many", 5) for _ in range(400)]
        requests += [line.request("big", 50) for _ in range(40)]
        requests += [line.request("heavy", 10, weight=3) for _ in range(300)]
        work = asyncio.create_task(all_of(*requests))
        await asyncio.sleep(200)
        assert line.tokens["many"] == pytest.approx(line.tokens["big"], abs=60)
        assert line.tokens["heavy"] == pytest.approx(3 * line.tokens["many"], rel=0.15)
        work.cancel()

    run(scenario())


def test_who_was_away_has_no_credit_and_no_debt() -> None:
    line = Line(1, bounds=QueueBounds(per_tenant=1000, all=1000))

    async def scenario() -> None:
        tasks = [asyncio.create_task(line.request("busy")) for _ in range(100)]
        await asyncio.sleep(50.5)
        tasks += [asyncio.create_task(line.request("late")) for _ in range(10)]
        await asyncio.sleep(20)
        assert 8 <= line.order[51:].count("late") <= 10  # in turns from its first request on
        for task in tasks:
            task.cancel()

    run(scenario())


def test_classes_go_in_their_order() -> None:
    line = Line(1)

    async def scenario() -> None:
        first = asyncio.create_task(line.request("now"))
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(line.request(priority, priority=priority)) for priority in reversed(PRIORITIES)]
        await all_of(first, *waiting)

    run(scenario())
    assert line.order == ["now", *PRIORITIES]


def test_a_closed_class_waits_and_others_pass_it() -> None:
    line = Line(2)
    line.closed = {"free"}

    async def scenario() -> None:
        free = asyncio.create_task(line.request("free", priority="free"))
        await asyncio.sleep(0.1)
        await line.request("evaluation", priority="evaluation")
        assert not free.done()
        line.closed.clear()
        line.queue.serve()
        await free

    run(scenario())
    assert line.order == ["evaluation", "free"]


def test_a_full_queue_makes_room_for_a_better_class() -> None:
    line = Line(1, bounds=QueueBounds(per_tenant=2, all=2))

    async def scenario() -> None:
        running = asyncio.create_task(line.request("running"))
        await asyncio.sleep(0.1)
        old, new = (asyncio.create_task(line.request("free", priority="free")) for _ in range(2))
        await asyncio.sleep(0.1)
        paid = asyncio.create_task(line.request("paid"))
        with pytest.raises(Shed):
            await new
        await all_of(running, old, paid)

    run(scenario())
    assert line.order == ["running", "paid", "free"]


def test_pressure_closes_and_opens_with_hysteresis() -> None:
    now = 0.0
    pressure = Pressure(stale_s=10.0, clock=lambda: now)
    assert pressure.closed() == ()
    seen = []
    for kv in (0.5, 0.75, 0.82, 0.86, 0.84, 0.79, 0.77, 0.98, 0.93, 0.91, 0.5):
        opened = pressure.measured(kv=kv, queue_s=0.0)
        seen.append((len(pressure.closed()), opened))
    assert seen == [
        *((0, False), (1, False), (2, False), (3, False), (3, False), (3, False), (2, True)),
        *((4, False), (4, False), (3, True), (0, True)),
    ]
    pressure.measured(kv=0.86, queue_s=0.0)
    assert pressure.closed() == ("free", "evaluation", "training")
    pressure.measured(kv=float("nan"), queue_s=0.0)
    assert pressure.closed() == ("free", "evaluation", "training")
    pressure.measured(kv=0.0, queue_s=6.0)
    assert pressure.closed() == ("free", "evaluation", "training")
    assert pressure.retry_after_s == 6.0
    now = 10.1
    assert pressure.closed() == ()  # nobody measured for too long


PLACES, ANSWER_S, SECONDS = 32, 1.0, 30.0


def latencies(folder: Path, *, noise_per_s: float, quota_per_minute: int | None) -> tuple[list[float], Counter[str]]:
    """Seconds from request to end of answer of a quiet tenant, beside another that sends so many requests a second."""

    async def scenario() -> tuple[list[float], Counter[str]]:
        loop = asyncio.get_running_loop()
        database = open_database(MEMORY, schema=TENANTS)
        accounts = Accounts(database, SECRET, clock=lambda: 1e9)
        keys = {}
        for name in ("quiet", "noisy"):
            accounts.add(name)
            keys[name] = accounts.create_key(name).key
        accounts.set_limits("noisy", {"requests_per_minute": quota_per_minute})
        accounts.set_limits(None, {"concurrency": PLACES})
        policy = TenantsPolicy(queue=QueueBounds(per_tenant=100, all=1000))
        tenants = tenants_on(database, folder, clock=loop.time, wall=lambda: 1e9 + loop.time(), policy=policy)
        await tenants.start()
        exchanges = asyncio.create_task(tenants.run())
        await asyncio.sleep(2)
        seen: list[float] = []
        ends: Counter[str] = Counter()
        work = [
            asyncio.create_task(clients(tenants, keys["quiet"], random.Random(1), 4.0, seen, ends, "quiet")),
            asyncio.create_task(clients(tenants, keys["noisy"], random.Random(2), noise_per_s, [], ends, "noisy")),
        ]
        await all_of(*work)
        exchanges.cancel()
        await tenants.close()
        database.close()
        return seen, ends

    return run(scenario())


async def clients(
    tenants: Tenants, key: str, draws: random.Random, per_s: float, seen: list[float], ends: Counter[str], name: str
) -> None:
    """Poisson arrivals, whose answers take as long as their tokens."""
    loop = asyncio.get_running_loop()
    end_s, work = loop.time() + SECONDS, []

    async def one(number: int, tokens: int) -> None:
        began_s = loop.time()
        try:
            caller = tenants.authenticate(bearer(key))
            ticket = await tenants.admit(caller, Ask(10, 200), f"{name}-{number}", timeout_s=10.0)
        except Refusal as refusal:
            ends[f"{name} {type(refusal).__name__}"] += 1
            return
        await asyncio.sleep(ANSWER_S * tokens / 100)
        ticket.settle(10, tokens)
        ends[f"{name} answered"] += 1
        seen.append(loop.time() - began_s)

    while per_s > 0:
        await asyncio.sleep(draws.expovariate(per_s))
        if loop.time() >= end_s:
            break
        work.append(asyncio.create_task(one(len(work), draws.randint(20, 200))))
    if work:
        await all_of(*work)


def test_a_neighbour_at_a_hundred_times_its_quota_is_hardly_noticed(tmp_path: Path) -> None:
    """Within its quota of 3 a second a third of the places are its own; beyond, it is refused."""
    alone, _ = latencies(tmp_path / "alone", noise_per_s=0.0, quota_per_minute=180)
    beside, ends = latencies(tmp_path / "beside", noise_per_s=300.0, quota_per_minute=180)
    assert len(alone) == len(beside) > 80
    assert np.percentile(beside, 95) <= 1.10 * np.percentile(alone, 95)
    assert ends["noisy RateLimited"] > 50 * ends["noisy answered"] / 2
    assert ends["quiet answered"] == len(beside)


def test_a_neighbour_without_a_quota_that_fills_every_place_is_hardly_noticed(tmp_path: Path) -> None:
    """Its line is full at all times: turns alone protect the other, who waits for the next place that is free."""
    alone, _ = latencies(tmp_path / "alone", noise_per_s=0.0, quota_per_minute=None)
    beside, ends = latencies(tmp_path / "beside", noise_per_s=100.0, quota_per_minute=None)
    assert np.percentile(beside, 95) <= 1.10 * np.percentile(alone, 95)
    assert ends["noisy QueueFull"] + ends["noisy DeadlinePassed"] > ends["noisy answered"]
    assert ends["noisy answered"] > 20 * SECONDS / 2  # no place is left empty for the quiet one
    assert ends["quiet answered"] == len(beside)
