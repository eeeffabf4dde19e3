"""What a gateway admits and refuses, on both engines."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from learner_jax.runtime import WeirError
from serving_bridge.database import DatabaseError
from serving_bridge.tenants import (
    Ask,
    BudgetSpent,
    DeadlinePassed,
    NotAllowed,
    QueueBounds,
    QueueFull,
    RateLimited,
    Refusal,
    Shed,
    TenantsPolicy,
    TooLarge,
    Unavailable,
)
from tests.support.tenant_gateways import ASK, World, admit, world
from tests.support.tenant_worlds import deployment

__all__ = ["deployment", "world"]  # fixtures


def test_rates_refuse_and_say_when(world: World) -> None:
    world.accounts.set_limits("acme", {"tokens_per_minute": 6000, "token_burst": 300})
    clock = world.deployment.clock

    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        (await admit(tenants, world, 0, replace(ASK, max_tokens=0, prompt_tokens=1))).settle(1, 0)
        await tenants._exchange.once()  # all of the limit is this gateway's now, less the token
        clock.now_s += 1
        for number in (1, 2, 3):
            await admit(tenants, world, number)
        with pytest.raises(RateLimited) as refused:
            await admit(tenants, world, 4)
        assert refused.value.status == 429
        assert refused.value.retry_after_s == pytest.approx(1.0)  # 100 tokens at 100 a second
        clock.now_s += 0.9
        with pytest.raises(RateLimited):
            await admit(tenants, world, 4)
        clock.now_s += 0.1 + 1e-6
        ticket = await admit(tenants, world, 4)
        ticket.settle(10, 40)  # half of the reservation comes back
        with pytest.raises(RateLimited) as refused:
            await admit(tenants, world, 5)
        assert refused.value.retry_after_s == pytest.approx(0.5, abs=1e-3)
        with pytest.raises(TooLarge, match="301 tokens.*limit of 300"):
            await admit(tenants, world, 6, Ask(1, 100, 3))

    asyncio.run(scenario())


def test_the_deployment_has_limits_of_its_own(world: World) -> None:
    world.accounts.set_limits(None, {"requests_per_minute": 60, "request_burst": 16})

    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        await admit(tenants, world, 0)
        await admit(tenants, world, 1)
        with pytest.raises(RateLimited):  # on credit, an eighth
            await admit(tenants, world, 2)

    asyncio.run(scenario())


def test_a_budget_is_never_exceeded_beyond_its_credit(world: World) -> None:
    world.accounts.set_limits("acme", {"month_tokens": 3_200})

    async def scenario() -> None:
        one, other = world.open(), world.open()
        await one.start()
        await other.start()
        spent = number = 0
        refusals: list[Refusal] = []
        for _ in range(60):
            for tenants in (one, other):
                number += 1
                try:
                    (await admit(tenants, world, number)).settle(10, 90)
                    spent += 100
                except (RateLimited, BudgetSpent) as refusal:
                    refusals.append(refusal)
            await one._exchange.once()
            await other._exchange.once()
        assert 2_900 <= spent <= 3_200
        told = {(type(refusal), refusal.status, refusal.code, refusal.retry_after_s) for refusal in refusals}
        assert (BudgetSpent, 429, "insufficient_quota", 60.0) in told  # the month ends in a minute
        assert told <= {
            (BudgetSpent, 429, "insufficient_quota", 60.0),
            (RateLimited, 429, "rate_limit_exceeded", 1.0),
        }
        world.deployment.wall.now_s += 60
        (await admit(one, world, 1000)).settle(10, 90)  # December
        await one.close()
        await other.close()

    asyncio.run(scenario())
    assert [used.answers for used in world.accounts.usage("2026-12")] == [1]


def test_a_budget_of_money_counts_by_the_price_table(world: World) -> None:
    world.accounts.set_limits("acme", {"month_nanos": 190_000 * 32})

    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        await admit(tenants, world, 1)  # 10 + 2 * 90 millionths: all of the credit
        with pytest.raises(RateLimited):
            await admit(tenants, world, 2)
        await tenants._exchange.once()
        await admit(tenants, world, 3)

    asyncio.run(scenario())


def test_who_has_no_place_waits_in_turn(world: World) -> None:
    world.accounts.set_limits("acme", {"concurrency": 1})
    policy = TenantsPolicy(queue=QueueBounds(per_tenant=2, all=10))

    async def scenario() -> None:
        tenants = world.open(policy=policy)
        await tenants.start()
        first = await admit(tenants, world, 1)
        second = asyncio.create_task(admit(tenants, world, 2))
        third = asyncio.create_task(admit(tenants, world, 3, timeout_s=0.05))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as refused:
            await admit(tenants, world, 4)
        assert refused.value.status == 429
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s > 0
        with pytest.raises(DeadlinePassed) as late:
            await third
        assert late.value.status == 429
        assert not second.done()
        first.settle(10, 0)
        (await second).settle(10, 0)
        assert tenants.figures()["waiting_paid"] == 0
        await tenants.close()

    asyncio.run(scenario())
    assert sorted(bill.response_id for bill in world.bills()) == ["r1", "r2"]


def test_a_client_that_goes_away_while_it_waits_leaves_nothing_behind(world: World) -> None:
    world.accounts.set_limits("acme", {"concurrency": 1, "tokens_per_minute": 10_000})

    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        first = await admit(tenants, world, 1)
        gone = asyncio.create_task(admit(tenants, world, 2))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        at_its_turn = asyncio.create_task(admit(tenants, world, 3))
        await asyncio.sleep(0)
        first.settle(10, 0)
        at_its_turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await at_its_turn
        (await admit(tenants, world, 4)).settle(10, 0)
        assert tenants.figures()["running"] == 0
        await tenants.close()

    asyncio.run(scenario())
    assert sorted(bill.response_id for bill in world.bills()) == ["r1", "r4"]


def test_under_pressure_classes_give_way(world: World) -> None:
    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        tenants.measured(kv=0.9, queue_s=0.0)
        await admit(tenants, world, 1)
        with pytest.raises(Shed) as refused:
            await admit(tenants, world, 2, replace(ASK, priority="free"))
        assert refused.value.status == 429
        assert refused.value.retry_after_s is not None
        tenants.measured(kv=0.5, queue_s=0.0)
        assert (await admit(tenants, world, 3, replace(ASK, priority="free"))).priority == 10

    asyncio.run(scenario())


def test_a_tenant_gets_no_better_class_than_its_own(world: World) -> None:
    world.accounts.change("acme", priority="evaluation")

    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        assert (await admit(tenants, world, 1, replace(ASK, priority="training"))).priority == 30
        with pytest.raises(NotAllowed):
            await admit(tenants, world, 2, replace(ASK, priority="paid"))

    asyncio.run(scenario())


def test_a_gateway_that_is_cut_off_goes_on_and_bills_later(world: World) -> None:
    world.accounts.set_limits("acme", {"requests_per_minute": 60, "request_burst": 40})
    clock = world.deployment.clock
    failures: list[WeirError] = []

    async def scenario() -> None:
        tenants = world.open()
        tenants._exchange._on_failure = failures.append
        await tenants.start()
        (await admit(tenants, world, 0)).settle(10, 5)
        await tenants._exchange.once()
        database = tenants._db
        real = database.write

        def cut(work: Any, *, synced: bool = True) -> Any:
            raise DatabaseError("cut off")

        database.write = cut  # type: ignore[method-assign]
        clock.now_s += 30
        await tenants._exchange.once()
        passed = 0
        for number in range(1, 60):
            try:
                (await admit(tenants, world, number)).settle(10, 5)
                passed += 1
            except RateLimited:
                break
        assert tenants.figures()["cut_off"] == 1
        assert passed == 20  # half of the burst
        database.write = real  # type: ignore[method-assign]
        await tenants._exchange.once()
        assert tenants.figures()["cut_off"] == 0
        await tenants.close()

    asyncio.run(scenario())
    assert len(failures) == 1
    assert len(world.bills()) == 21


@pytest.mark.parametrize("ask", [Ask(-1, 10), Ask(1, -1), Ask(1, 1, -1), Ask(2**60, 1)])
def test_counts_that_make_no_sense_are_the_gateways_mistake(world: World, ask: Ask) -> None:
    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        with pytest.raises(ValueError, match="expected counts"):
            await admit(tenants, world, 1, ask)
        await admit(tenants, world, 2)
        with pytest.raises(ValueError, match="in use"):
            await admit(tenants, world, 2)

    asyncio.run(scenario())


def test_refusals_are_for_their_sender(world: World) -> None:
    """None names a tenant, a key or a host."""
    for kind in Refusal.__subclasses__():
        assert kind.status in (401, 403, 429, 503)
        assert kind.status != 503 or kind is Unavailable, "a full queue is never a 503"
