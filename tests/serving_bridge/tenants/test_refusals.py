"""What is refused by its key alone, and how seldom the database is asked for it; on both engines."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from dataclasses import replace

import pytest

from serving_bridge.tenants import RateLimited, Shed, Tenants
from tests.support.tenant_gateways import ASK, World, admit, world
from tests.support.tenant_worlds import bearer, deployment

__all__ = ["deployment", "world"]  # fixtures


def test_a_tenant_of_which_nothing_can_pass_is_refused_by_its_key_alone(world: World) -> None:
    world.accounts.set_limits("acme", {"requests_per_minute": 60, "request_burst": 2, "tokens_per_minute": 60_000})
    clock = world.deployment.clock

    async def scenario() -> None:
        tenants = await lone_gateway(world)
        caller = tenants.authenticate(bearer(world.key))
        for number in (1, 2):
            for _ in range(9):
                tenants.check_now(caller)  # takes nothing
            (await admit(tenants, world, number)).settle(10, 90)
        with pytest.raises(RateLimited) as refused:
            tenants.check_now(caller)
        assert refused.value.retry_after_s == pytest.approx(1.0)
        clock.now_s += 0.9
        with pytest.raises(RateLimited) as refused:
            tenants.check_now(caller)
        assert refused.value.retry_after_s == pytest.approx(0.1)
        clock.now_s += 0.1 + 1e-6
        tenants.check_now(caller)
        await admit(tenants, world, 3)

    asyncio.run(scenario())


def test_tokens_that_are_used_up_refuse_by_the_key_and_too_few_by_the_request(world: World) -> None:
    world.accounts.set_limits("acme", {"tokens_per_minute": 6000, "token_burst": 100})

    async def scenario() -> None:
        tenants = await lone_gateway(world)
        caller = tenants.authenticate(bearer(world.key))
        await admit(tenants, world, 1, replace(ASK, max_tokens=80))
        tenants.check_now(caller)  # ten tokens are left
        with pytest.raises(RateLimited):
            await admit(tenants, world, 2)
        await admit(tenants, world, 3, replace(ASK, max_tokens=0))
        with pytest.raises(RateLimited) as refused:
            tenants.check_now(caller)
        assert refused.value.retry_after_s == pytest.approx(0.01)  # one token at 100 a second

    asyncio.run(scenario())


def test_under_pressure_a_class_is_refused_by_its_key(world: World) -> None:
    world.accounts.change("acme", priority="free")

    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        caller = tenants.authenticate(bearer(world.key))
        tenants.check_now(caller)
        tenants.measured(kv=0.9, queue_s=0.0)
        with pytest.raises(Shed):
            tenants.check_now(caller)

    asyncio.run(scenario())


def test_what_is_refused_by_its_key_is_asked_for_all_the_same(world: World) -> None:
    """A gateway's share follows what it is asked for, refused or not; what passes the key counts once, at `admit`."""
    world.accounts.set_limits("acme", {"requests_per_minute": 60, "request_burst": 1})

    async def scenario() -> list[float]:
        tenants = await lone_gateway(world)
        caller = tenants.authenticate(bearer(world.key))
        slice_ = tenants._holdings.slice_of("tenant:acme", caller.limits, world.deployment.clock.now_s)
        slice_.offer(world.deployment.clock.now_s, 1.0)
        found = [slice_._asked]
        tenants.check_now(caller)
        await admit(tenants, world, 1)
        found.append(slice_._asked)
        for _ in range(3):
            with pytest.raises(RateLimited):
                tenants.check_now(caller)
        return [*found, slice_._asked]

    assert asyncio.run(scenario()) == pytest.approx([0, 1 / 60, 4 / 60])


async def lone_gateway(world: World) -> Tenants:
    """A gateway that holds all of acme's limits, none of them used."""
    tenants = world.open()
    await tenants.start()
    caller = tenants.authenticate(bearer(world.key))
    tenants._holdings.slice_of("tenant:acme", caller.limits, world.deployment.clock.now_s)
    for _ in range(15):
        await tenants._exchange.once()
        world.deployment.clock.now_s += 4
    return tenants


def test_refusals_ask_the_database_for_more_where_it_may_have_more(world: World) -> None:
    """A gateway that has all of a limit asks for nothing. One that has a part asks, and soon again only in vain."""
    world.accounts.set_limits("acme", {"requests_per_minute": 60, "request_burst": 8})
    clock = world.deployment.clock

    numbers = itertools.count()

    async def refusals(tenants: Tenants, over_s: float) -> int:
        """Of 100 requests, after a first one; returns how many times the database was asked."""
        asked = -1
        for _ in range(101):
            with suppress(RateLimited):
                while True:
                    await admit(tenants, world, next(numbers))
            clock.now_s += over_s / 100
            asked += tenants._holdings._news.is_set() or asked < 0
            tenants._holdings._news.clear()
        return asked

    async def scenario() -> None:
        lone = await lone_gateway(world)
        assert await refusals(lone, 0.99) == 0
        await lone.close()
        one, other = world.open(), world.open()
        await one.start()
        await other.start()
        for _ in range(8):
            for tenants in (one, other):
                caller = tenants.authenticate(bearer(world.key))
                tenants._holdings.slice_of("tenant:acme", caller.limits, clock.now_s).wait_s(1.0, clock.now_s)
                clock.now_s += 0.5
                await tenants._exchange.once()
        assert 0 < one._holdings._slices["tenant:acme"].share < 0.9
        assert 3 <= await refusals(one, 0.99) <= 5

    asyncio.run(scenario())
