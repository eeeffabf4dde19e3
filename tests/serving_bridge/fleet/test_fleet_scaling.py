"""Replicas that come and go by order: scaling, rolling restarts, and fleets that share a registry."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving_bridge.fleet.caretaker import NOTICE_S
from serving_bridge.fleet.orders import OrderBook
from tests.support.stub_fleet import ROUND_S, SLACK_S, START_S, StubFleet
from tests.support.virtual_time import run


def test_the_number_of_replicas_follows_orders_also_those_given_to_a_controller_that_died(tmp_path: Path):
    async def story() -> None:
        book = OrderBook(tmp_path / "replicas", "host")
        async with StubFleet(tmp_path, replicas=1).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0")
            book.order("one", replicas=3)
            took_s = await fleet.until_healthy("host-1", "host-2")
            assert took_s < START_S + ROUND_S + SLACK_S
            status = book.status()
            assert status is not None
            assert (status.wanted, status.order_id, status.refused) == (3, "one", "")
            book.order("two", replicas=2)
            server = fleet.servers["host-2"]
            server.in_flight_s = 5.0
            noticed_s = await fleet.until(lambda: fleet.states()["host-2"] == "draining", 5)
            assert noticed_s < SLACK_S
            await fleet.until(lambda: "host-2" not in fleet.states(), 20)
            (drain_s,), (stop_s,) = server.did("drain"), server.did("stop")
            assert stop_s - drain_s == pytest.approx(5.0)
            assert set(fleet.states()) == {"host-0", "host-1"}
            book.order("three", replicas=0)
            await fleet.until(lambda: (found := book.status()) and found.refused, 2)
            assert "0 replicas are fewer than serving.min_healthy allows (1)" in book.status().refused  # type: ignore[union-attr]
        async with StubFleet(tmp_path, replicas=1).running() as fleet:
            await fleet.until_healthy("host-0", "host-1")

    run(story())


def test_a_replica_that_starts_can_be_taken_away_at_once(tmp_path: Path):
    async def story() -> None:
        book = OrderBook(tmp_path / "replicas", "host")
        async with StubFleet(tmp_path, replicas=1).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0")
            book.order("one", replicas=2)
            await fleet.until(lambda: fleet.states().get("host-1") == "starting", 2)
            book.order("two", replicas=1)
            took_s = await fleet.until(lambda: "host-1" not in fleet.states(), 5)
            assert took_s < START_S
            assert fleet.servers["host-1"].did("kill")

    run(story())


@pytest.mark.parametrize("min_healthy", [1, 2])
def test_a_rolling_restart_takes_one_at_a_time_and_keeps_enough_serving(tmp_path: Path, min_healthy: int):
    async def story() -> None:
        book = OrderBook(tmp_path / "replicas", "host")
        async with StubFleet(tmp_path, replicas=3, min_healthy=min_healthy).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0", "host-1", "host-2")
            book.order("one", restart=True)
            fewest = 3
            told: set[str] = set()

            def is_done() -> bool:
                nonlocal fewest
                fewest = min(fewest, list(fleet.states().values()).count("healthy"))
                status = book.status()
                told.add(status.doing if status else "")
                return status is not None and status.order_id == "one" and not status.doing

            await fleet.until(is_done, 60)
            assert any("to restart: host-1, host-2; restarting: host-0" in doing for doing in told), told
            orders = book.orders()
            assert orders is not None
            assert orders.replicas is None, "a restart says nothing of the number of replicas"
            assert fewest == 2
            assert [server.asked for server in fleet.servers.values()] == [[1, 1]] * 3
            for server in fleet.servers.values():
                assert [what for what, _ in server.history] == ["start", "drain", "stop", "start"]
                assert server.did("drain")[0] - server.did("start")[0] >= NOTICE_S
            await asyncio.sleep(10)
            assert all(len(server.did("start")) == 2 for server in fleet.servers.values())

    run(story())


def test_a_rolling_restart_waits_while_too_few_serve_and_is_refused_where_they_always_would_be(tmp_path: Path):
    async def story() -> None:
        book = OrderBook(tmp_path / "replicas", "host")
        async with StubFleet(tmp_path, replicas=2, min_healthy=1).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0", "host-1")
            fleet.servers["host-1"].outcomes = ["unfit"] * 2
            newer = fleet.publish()
            await fleet.until(lambda: fleet.states()["host-1"] == "unfit", 5)
            book.order("one", restart=True)
            while (states := fleet.states())["host-1"] != "healthy":
                assert states["host-0"] == "healthy"
                await asyncio.sleep(0.01)
            await fleet.until(lambda: all(len(server.did("start")) == 2 for server in fleet.servers.values()), 60)
            await fleet.until_healthy("host-0", "host-1")
            assert fleet.members[0].version == newer.version
            book.order("two", replicas=1)
            await fleet.until(lambda: len(fleet.states()) == 1, 20)
            book.order("three", restart=True)
            await fleet.until(lambda: (found := book.status()) and found.order_id == "three", 2)
            assert "would leave fewer than serving.min_healthy = 1: scale to 2 first" in book.status().refused  # type: ignore[union-attr]
            await asyncio.sleep(10)
            assert fleet.states() == {"host-0": "healthy"}

    run(story())


def test_two_fleets_share_a_registry_and_one_leaves(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path).running() as first:
            second = StubFleet(tmp_path, name="other", replicas=2)
            first.publish()
            await first.until_healthy("host-0")
            async with second.running():
                await first.until_healthy("other-0", "other-1")
                second.stop = True
                took_s = await first.until(lambda: first.states().get("other-0") == "draining", 5)
                assert took_s < SLACK_S
                assert [row.name for row in first.registry.ready()] == ["host-0"]
                await first.until(lambda: set(first.states()) == {"host-0"}, 20)
                await second.task

    run(story())


def test_a_controller_that_starts_forgets_the_replicas_of_the_one_before(tmp_path: Path):
    async def story() -> None:
        fleet = StubFleet(tmp_path)
        for name, owner in (("host-0", "host"), ("host-7", "host"), ("other-0", "other")):
            fleet.registry.report(name, url="http://x", state="healthy", version=1, step=0, fleet=owner)
        async with fleet.running():
            await asyncio.sleep(0.1)
            assert fleet.states() == {"host-0": "starting", "other-0": "healthy"}

    run(story())
