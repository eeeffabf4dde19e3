"""When a fleet ends, and how: too few replicas, no hope, a stop, a cancellation; a full disk alone ends nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving_bridge.fleet.caretaker import NOTICE_S
from serving_bridge.fleet.looks import FleetError
from serving_bridge.vllm.server_checks import ReplicaStartError
from tests.support.stub_fleet import SLACK_S, StubFleet, StubServer
from tests.support.virtual_time import run


def test_too_few_replicas_for_too_long_end_the_fleet_with_all_reasons(tmp_path: Path):
    def broken(server: StubServer) -> None:
        server.outcomes = ["unfit"] * 1000 if server.name == "host-1" else []

    async def story() -> None:
        settings = {"replicas": 2, "min_healthy": 2, "min_healthy_s": 20.0}
        async with StubFleet(tmp_path, prepare=broken, **settings).running() as fleet:
            await asyncio.sleep(30)  # nothing to serve yet is not the fleet's fault
            fleet.publish()
            published_s = fleet.time()
            with pytest.raises(FleetError) as caught:
                await fleet.until(lambda: False, 60)
            assert 20 < fleet.time() - published_s < 20 + SLACK_S
            assert "2 healthy replicas from replicas of fleet host" in str(caught.value)
            assert "serving.min_healthy_s = 20 s" in str(caught.value)
            assert "host-0 is healthy" in str(caught.value)
            assert "host-1 is" in str(caught.value)
            assert fleet.states() == {}
            assert all(server.status is not None for server in fleet.servers.values())

    run(story())


def test_a_fleet_without_hope_ends_at_once(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path, max_restarts=2).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0")
            server = fleet.servers["host-0"]
            server.start_error = "no room on the device"
            server.status = 9
            with pytest.raises(FleetError, match="host-0 is dead: no room on the device; restarted 2 times within"):
                await fleet.until(lambda: False, 60)
            assert len(server.did("start")) == 3

    run(story())


def test_a_first_start_that_fails_is_the_settings_fault_and_ends_the_fleet(tmp_path: Path):
    def broken(server: StubServer) -> None:
        server.start_error = "port taken" if server.name == "host-1" else ""

    async def story() -> None:
        async with StubFleet(tmp_path, prepare=broken, replicas=2).running() as fleet:
            with pytest.raises(ReplicaStartError, match="port taken"):
                await fleet.until(lambda: False, 60)
            assert fleet.servers["host-0"].did("kill")

    run(story())


def test_a_stop_drains_all_replicas_at_once_and_a_cancellation_ends_them_at_once(tmp_path: Path):
    async def story(cancel: bool) -> None:
        async with StubFleet(tmp_path, replicas=2).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0", "host-1")
            for server in fleet.servers.values():
                server.in_flight_s = 5.0
            began_s = fleet.time()
            if cancel:
                fleet.task.cancel()
                await asyncio.gather(fleet.task, return_exceptions=True)
                assert fleet.time() - began_s < SLACK_S
                assert all(server.did("kill") and not server.did("drain") for server in fleet.servers.values())
            else:
                fleet.stop = True
                await fleet.until(lambda: set(fleet.states().values()) == {"draining"}, SLACK_S)
                assert fleet.registry.ready() == []
                await fleet.task
                assert 5 + NOTICE_S < fleet.time() - began_s < 5 + NOTICE_S + SLACK_S
                assert all(len(server.did("stop")) == 1 for server in fleet.servers.values())
            assert fleet.states() == {}

    run(story(cancel=False))
    run(story(cancel=True))


@pytest.mark.parametrize("for_ever", [False, True])
def test_a_full_disk_is_waited_out_while_replicas_serve(
    tmp_path: Path, for_ever: bool, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    async def story() -> None:
        async with StubFleet(tmp_path, min_healthy_s=30.0).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0")
            began_s = fleet.time()
            with monkeypatch.context() as patch:
                patch.setattr("serving_bridge.routing.registry.write_file", full)
                patch.setattr("serving_bridge.fleet.orders.write_file", full)
                if for_ever:
                    with pytest.raises(FleetError, match="No space left on device"):
                        await fleet.until(lambda: False, 60)
                    assert 30 <= fleet.time() - began_s < 30 + 5 + SLACK_S  # a heartbeat is due every 5 s
                    return
                fleet.publish()
                await asyncio.sleep(20)
                assert fleet.members[0].version == 2
                assert fleet.registry.replicas()[0].version == 1
            await fleet.until(lambda: fleet.registry.replicas()[0].version == 2, SLACK_S)
            assert {record["what"] for record in fleet.named("files_failed")} == {"registry", "orders"}

    run(story())


def test_a_suspect_replica_is_not_among_those_that_must_be_healthy(tmp_path: Path):
    async def story() -> None:
        settings = {"replicas": 2, "min_healthy": 2, "min_healthy_s": 20.0, "hang_s": 1000.0}
        async with StubFleet(tmp_path, **settings).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0", "host-1")
            fleet.servers["host-1"].answers = False
            await fleet.until(lambda: fleet.states()["host-1"] == "suspect", 25)
            suspected_s = fleet.time()
            with pytest.raises(FleetError, match="2 healthy replicas .* host-1 is suspect"):
                await fleet.until(lambda: False, 60)
            assert 20 <= fleet.time() - suspected_s + SLACK_S < 20 + 2 * SLACK_S

    run(story())
