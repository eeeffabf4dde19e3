"""Every admitted answer is billed once, whatever happens to its gateway; on both engines."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.tenants import (
    SlicePolicy,
    TenantsPolicy,
    Unavailable,
)
from tests.support.tenant_gateways import ASK, World, admit, answered, killed, world
from tests.support.tenant_worlds import deployment

__all__ = ["deployment", "world"]  # fixtures


def test_an_answer_is_billed_by_its_usage_once(world: World) -> None:
    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        ticket = await admit(tenants, world, 1)
        assert (ticket.priority, ticket.response_id) == (0, "r1")
        ticket.settle(10, 40)
        ticket.settle(10, 90)
        ticket.cancel()
        await tenants.close()

    asyncio.run(scenario())
    (bill,) = world.bills()
    assert (bill.response_id, bill.tenant, bill.month, bill.settled) == ("r1", "acme", "2026-11", "usage")
    assert (bill.prompt_tokens, bill.completion_tokens, bill.nanos) == (10, 40, 90_000)
    assert world.rows("SELECT scope, month, tokens, nanos FROM budgets ORDER BY scope") == [
        ("deployment", "2026-11", 50, 90_000),
        ("tenant:acme", "2026-11", 50, 90_000),
    ]
    assert list(world.spool.iterdir()) == []
    for table in ("open_answers", "slices", "gateways", "allowances"):
        assert world.rows(f"SELECT * FROM {table}") == []


def test_a_request_that_was_never_sent_costs_nothing(world: World) -> None:
    world.accounts.set_limits("acme", {"requests_per_minute": 60, "request_burst": 8, "month_tokens": 100_000})

    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        for number in range(20):
            (await admit(tenants, world, number)).cancel()
        assert tenants.figures()["running"] == 0
        await tenants.close()

    asyncio.run(scenario())
    assert world.bills() == []


def test_a_killed_gateways_answers_are_billed_by_the_next_one(world: World) -> None:
    async def scenario() -> None:
        gateway = world.open(name="first")
        await gateway.start()
        (await admit(gateway, world, 1)).settle(10, 5)
        await admit(gateway, world, 2)
        await gateway._exchange.once()
        (await admit(gateway, world, 3)).settle(10, 6)  # not yet in the database
        await admit(gateway, world, 4)
        (await admit(gateway, world, 5)).cancel()
        killed(gateway)
        following = world.open(name="second")
        await following.start()
        assert world.rows("SELECT gateway FROM gateways") == [("second",)]
        await following.close()

    asyncio.run(scenario())
    assert sorted((bill.response_id, bill.completion_tokens, bill.settled) for bill in world.bills()) == [
        ("r1", 5, "usage"),
        ("r2", 90, "reservation"),
        ("r3", 6, "usage"),
        ("r4", 90, "reservation"),
    ]
    assert world.rows("SELECT * FROM open_answers") == []
    assert list(world.spool.iterdir()) == []


def test_a_lost_hosts_answers_are_billed_after_the_lease(world: World, tmp_path: Path) -> None:
    clock = world.deployment.clock
    policy = TenantsPolicy(answer_lease_s=100, slices=SlicePolicy(lease_s=10))

    async def scenario() -> None:
        lost = world.open(name="lost", policy=policy)
        await lost.start()
        await admit(lost, world, 1)
        await lost._exchange.once()
        world.spool = tmp_path / "elsewhere"
        other = world.open(name="other", policy=policy)
        await other.start()
        for _ in range(130):
            clock.now_s += 1
            await other._exchange.once()
            if clock.now_s < 1000 + 100:
                assert world.bills() == []
        assert world.rows("SELECT gateway FROM gateways") == [("other",)]

    asyncio.run(scenario())
    assert [(bill.response_id, bill.settled) for bill in world.bills()] == [("r1", "reservation")]


def test_an_answer_that_nobody_settles_is_billed_as_reserved(world: World) -> None:
    world.accounts.set_limits("acme", {"concurrency": 1})
    policy = TenantsPolicy(answer_lease_s=100)

    async def scenario() -> None:
        tenants = world.open(policy=policy)
        await tenants.start()
        ticket = await admit(tenants, world, 1)
        world.deployment.clock.now_s += 101
        await tenants._exchange.once()
        ticket.settle(10, 5)  # too late
        await admit(tenants, world, 2)  # its place is free
        await tenants.close()

    asyncio.run(scenario())
    assert [(bill.completion_tokens, bill.settled) for bill in world.bills()] == [(90, "reservation")] * 2


def test_a_full_disk_refuses_what_could_not_be_billed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()

        def full(line: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(tenants._journal, "append", full)
        with pytest.raises(Unavailable) as refused:
            await admit(tenants, world, 1)
        assert refused.value.status == 503
        monkeypatch.undo()
        assert tenants.figures()["running"] == 0
        (await admit(tenants, world, 1)).settle(10, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("model", ["\ud800", "a\0b", "x" * 10_000, "\x1b[31m"])
def test_no_name_of_a_model_stops_the_bills(world: World, model: str) -> None:
    async def scenario() -> None:
        tenants = world.open()
        await tenants.start()
        (await admit(tenants, world, 1, replace(ASK, model=model))).settle(10, 5)
        await admit(tenants, world, 2, replace(ASK, model=model))
        await tenants._exchange.once()
        assert tenants.figures()["unwritten_bills"] == 0
        await tenants.close()

    asyncio.run(scenario())
    assert [bill.response_id for bill in world.bills()] == ["r1", "r2"]
    assert all(bill.model.isprintable() and len(bill.model) < 300 for bill in world.bills())


def test_the_journal_stays_small(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving_bridge.tenants.answers._JOURNAL_BYTES", 2_000)

    async def scenario() -> None:
        tenants = world.open(name="busy")
        await tenants.start()
        await admit(tenants, world, 0)
        for number in range(1, 40):
            await answered(tenants, world.key, ASK, f"r{number}", (10, number))
            await tenants._exchange.once()
        assert (world.spool / "busy.journal").stat().st_size < 3_000
        killed(tenants)
        following = world.open(name="next")
        await following.start()
        await following.close()

    asyncio.run(scenario())
    bills = {bill.response_id: bill for bill in world.bills()}
    assert len(bills) == 40
    assert bills["r0"].settled == "reservation"
    assert bills["r39"].completion_tokens == 39
