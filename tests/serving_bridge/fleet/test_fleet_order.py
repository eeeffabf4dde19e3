"""Which replica gets which version when: the fleet controller, over replicas whose rounds end as the test says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving_bridge.weights.files import Tensor
from serving_bridge.weights.writer import VersionWriter
from tests.support.stub_fleet import START_S, TENSORS, StubFleet, StubServer
from tests.support.virtual_time import run


def by_hand(server: StubServer) -> None:
    server.by_hand = True


async def started(fleet: StubFleet) -> None:
    fleet.publish()
    await asyncio.sleep(START_S + 0.2)


@pytest.mark.parametrize(("at_once", "first", "second"), [(1, [[1], []], [[1], [1]]), (0, [[1], [1]], [[1], [1]])])
def test_replicas_are_updated_one_by_one_or_all_at_once(
    tmp_path: Path, at_once: int, first: list[list[int]], second: list[list[int]]
):
    async def story() -> None:
        async with StubFleet(tmp_path, prepare=by_hand, replicas=2, updates_at_once=at_once).running() as fleet:
            await started(fleet)
            assert [server.asked for server in fleet.servers.values()] == first
            await fleet.end(0)
            assert [server.asked for server in fleet.servers.values()] == second
            await fleet.end(1)
            assert [member.version for member in fleet.members] == [1, 1]

    run(story())


def test_a_serving_replica_waits_until_a_damaged_version_is_there_whole(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path, prepare=by_hand).running() as fleet:
            await started(fleet)
            await fleet.end(0)
            newest = fleet.publish()
            await asyncio.sleep(0.1)
            await fleet.end(0, "rejected", error="bad sha256", store_damaged=True)
            server = fleet.servers["host-0"]
            assert server.asked == [1, 2]  # serves version 1 meanwhile, and is not bothered again
            assert (fleet.members[0].version, fleet.states()) == (1, {"host-0": "healthy"})
            assert fleet.store.wanted_anchors() == [2]
            assert fleet.named("version_damaged")[0] == {
                "event": "version_damaged",
                "version": 2,
                "error": "bad sha256",
            }
            VersionWriter(fleet.store).add_anchor(newest, {name: Tensor.of(array) for name, array in TENSORS.items()})
            await asyncio.sleep(0.1)
            assert server.asked == [1, 2, 2]

    run(story())


def test_a_replica_that_serves_nothing_takes_the_newest_version_that_it_can(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path, prepare=by_hand).running() as fleet:
            fleet.publish()
            fleet.publish()
            await started(fleet)
            asked = fleet.servers["host-0"].asked
            for version in (3, 2):
                assert asked[-1] == version
                await fleet.end(0, "rejected", error="bad sha256", store_damaged=True)
                await asyncio.sleep(3)
            assert asked == [3, 2, 1]
            await fleet.end(0)
            assert fleet.members[0].version == 1
            assert asked == [3, 2, 1]
            newer = fleet.publish()
            await asyncio.sleep(0.1)
            assert asked[-1] == newer.version == 4

    run(story())


def test_after_three_failed_rounds_a_replica_is_ended_and_started_again(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path, prepare=by_hand).running() as fleet:
            await started(fleet)
            server = fleet.servers["host-0"]
            for failed in range(3):
                assert (server.asked, len(server.did("kill"))) == ([1] * (failed + 1), 0)
                await fleet.end(0, "unfit", error="wrong log-probs")
                await asyncio.sleep(4)
            assert len(server.did("kill")) == 1
            assert len(server.did("start")) == 2
            assert "3 weight rounds in a row failed: wrong log-probs" in fleet.named("replica_lost")[0]["reason"]
            assert server.asked == [1] * 4

    run(story())


def test_all_rounds_of_a_fleet_have_one_id_so_that_it_takes_over_what_it_left(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path, replicas=2).running() as fleet:
            await started(fleet)
            fleet.publish()
            await fleet.until(lambda: all(server.asked == [1, 2] for server in fleet.servers.values()), 5)
            assert {frozenset(server.round_ids) for server in fleet.servers.values()} == {frozenset({"host"})}

    run(story())
