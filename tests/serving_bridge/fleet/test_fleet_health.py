"""Replicas that die, hang or fail requests: found in bounded time, and back only with proven weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving_bridge.processes.restarts import RestartBudget
from serving_bridge.routing.lifecycle import TAKES_REQUESTS
from tests.support.stub_fleet import ROUND_S, SLACK_S, START_S, StubFleet, StubServer
from tests.support.virtual_time import run


def test_a_replica_whose_process_ends_is_started_again_and_serves_only_after_a_round(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0")
            server = fleet.servers["host-0"]
            server.status = 9
            seen: list[str] = []

            def is_back() -> bool:
                state = fleet.states()["host-0"]
                seen.extend([state] if seen[-1:] != [state] else [])
                return state == "healthy" and len(seen) > 1

            took_s = await fleet.until(is_back, 10)
            assert [state for state in seen if state != "healthy"] == ["dead", "restarting", "stale"]
            assert took_s < START_S + ROUND_S + SLACK_S
            assert server.asked == [1, 1]
            assert fleet.named("replica_lost")[0]["reason"] == "its process ended with status 9"

    run(story())


def test_restarts_wait_longer_each_time_and_then_for_the_window(tmp_path: Path):
    async def story() -> None:
        settings = {"max_restarts": 3, "restart_window_s": 60.0, "min_healthy": 1, "replicas": 2}
        async with StubFleet(tmp_path, **settings).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0", "host-1")
            server = fleet.servers["host-0"]
            for _ in range(4):
                await fleet.until_healthy("host-0", within_s=100)
                server.status = 9
                await fleet.until(lambda: fleet.states()["host-0"] != "healthy", 5)
            (row,) = [row for row in fleet.registry.replicas() if row.name == "host-0"]
            assert "restarted 3 times within 60 s already (serving.max_restarts)" in row.reason
            pauses = [record["restart_in_s"] for record in fleet.named("replica_lost")]
            assert pauses[:3] == [0.0, 1.0, 2.0]
            lost_s = fleet.time()
            first_death_s = server.did("kill")[0]
            await fleet.until_healthy("host-0", within_s=100)
            assert fleet.time() - first_death_s > 60 > fleet.time() - lost_s
            assert fleet.members[0].budget.left(server.did("start")[-1]) == 0  # the one that came back is spent again

    run(story())


def test_what_ran_well_for_a_window_has_its_restarts_back():
    budget = RestartBudget(2, 3600.0)
    assert [budget.spend(now_s) for now_s in (0.0, 10.0, 20.0)] == [0.0, 1.0, None]
    assert budget.next_s(20.0) == 3580.0
    assert budget.left(3599.0) == 0
    assert budget.left(3610.0) == 2
    assert budget.spend(3610.0) == 0.0


@pytest.mark.parametrize(
    ("fault", "reason"), [("samples", "samples nothing since"), ("answers", "no answer to /health for")]
)
def test_a_hung_replica_is_found_and_restarted_in_bounded_time(tmp_path: Path, fault: str, reason: str):
    async def story() -> None:
        async with StubFleet(tmp_path, hang_s=16.0).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0")
            await asyncio.sleep(40)  # an idle replica is no hung one
            server = fleet.servers["host-0"]
            assert len(server.did("start")) == 1
            setattr(server, fault, False)
            took_s = await fleet.until(lambda: len(server.did("start")) == 2, 60)
            # Between the last good look and the fault may lie a whole interval of looks.
            assert 16 - 16 / 8 - 16 / 4 < took_s < 16 + 16 / 4 + SLACK_S
            assert reason in fleet.named("replica_lost")[0]["reason"]
            assert len(server.did("kill")) == 1
            await fleet.until_healthy("host-0")

    run(story())


def test_a_replica_that_answers_garbage_is_replaced_and_the_fleet_goes_on(tmp_path: Path):
    def broken(server: StubServer) -> None:
        server.outcomes = ["garbage"] * 3 if server.name == "host-0" else []

    async def story() -> None:
        async with StubFleet(tmp_path, prepare=broken, replicas=2, hang_s=16.0).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0", "host-1")
            server = fleet.servers["host-0"]
            assert len(server.did("start")) == 2
            errors = [record["error"] for record in fleet.named("round") if record["replica"] == "host-0"]
            assert errors == ["its answer can't be read"] * 3 + [None]
            server.garbles = True
            await fleet.until(lambda: len(server.did("start")) == 3, 30)
            await fleet.until_healthy("host-0")
            assert len(fleet.servers["host-1"].did("start")) == 1

    run(story())


def test_a_slow_replica_is_suspect_used_last_and_recovers_by_itself(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path, replicas=2).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0", "host-1")
            for name in ("host-0", "host-1"):
                fleet.servers[name].answers = False
                await fleet.until(lambda name=name: fleet.states()[name] == "suspect", 25)
                in_use = [row.name for row in fleet.registry.ready()]
                assert in_use == (["host-1"] if name == "host-0" else ["host-0", "host-1"])
            for server in fleet.servers.values():
                server.answers = True
            await fleet.until_healthy("host-0", "host-1", within_s=10)
            assert [server.asked for server in fleet.servers.values()] == [[1], [1]]
            assert not fleet.named("replica_lost")

    run(story())


def test_every_state_that_workers_route_to_is_one_of_the_two_serving_ones():
    assert TAKES_REQUESTS == ("healthy", "suspect")


def report(fleet: StubFleet, succeeded: int, failed: int) -> None:
    fleet.registry.report_requests("worker", {"host-0": (succeeded, failed), "host-1": (100, 0)})


@pytest.mark.parametrize("rounds", ["updated", "rejected"])
def test_a_replica_that_fails_requests_must_prove_its_weights_again_or_be_restarted(tmp_path: Path, rounds: str):
    async def story() -> None:
        async with StubFleet(tmp_path, replicas=2).running() as fleet:
            fleet.publish()
            report(fleet, 100, 0)
            await fleet.until_healthy("host-0", "host-1")
            await asyncio.sleep(2)
            server = fleet.servers["host-0"]
            report(fleet, 104, 4)
            await asyncio.sleep(3)
            assert server.asked == [1]  # a few failures are nobody's fault
            server.outcomes = [rounds] * 3
            report(fleet, 104, 20)
            await fleet.until(lambda: fleet.states()["host-0"] == "suspect", 3)
            await fleet.until(lambda: len(server.asked) == 2, 3)
            if rounds == "updated":
                await fleet.until_healthy("host-0", within_s=3)
                await asyncio.sleep(30)
                assert (server.asked, server.did("kill")) == ([1, 1], [])
            else:
                await fleet.until(lambda: server.did("kill"), 20)
                assert "3 weight rounds in a row failed: why" in fleet.named("replica_lost")[0]["reason"]
                await fleet.until_healthy("host-0", within_s=20)
            assert fleet.servers["host-1"].asked == [1]

    run(story())


def test_weights_under_another_name_than_they_were_given_are_proven_again(tmp_path: Path):
    """A request of a round that was given up can be carried out after the next round has ended."""

    async def story() -> None:
        fleet = StubFleet(tmp_path)
        async with fleet.running():
            fleet.publish()
            await fleet.until_healthy("host-0")
            server = fleet.servers["host-0"]
            await asyncio.sleep(10)
            assert server.asked == [1]
            server.named = 0
            await fleet.until(lambda: fleet.states()["host-0"] == "suspect", within_s=3)
            await fleet.until_healthy("host-0", within_s=5)
            assert server.asked == [1, 1]

    run(story())


def test_requests_that_go_on_failing_do_not_pause_a_replica_all_the_time(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path, replicas=2).running() as fleet:
            fleet.publish()
            report(fleet, 100, 0)
            await fleet.until_healthy("host-0", "host-1")
            for failed in range(0, 1200, 10):
                report(fleet, 100, failed)
                await asyncio.sleep(1)
            assert 4 <= len(fleet.servers["host-0"].asked) <= 10

    run(story())


def test_a_worker_that_began_anew_is_no_failure(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path, replicas=2).running() as fleet:
            fleet.publish()
            report(fleet, 1000, 50)
            await fleet.until_healthy("host-0", "host-1")
            report(fleet, 3, 0)
            await asyncio.sleep(3)
            assert fleet.servers["host-0"].asked == [1]
            report(fleet, 3, 20)  # and what it says from then on counts
            await fleet.until(lambda: fleet.servers["host-0"].asked == [1, 1], 3)

    run(story())


@pytest.mark.parametrize("status", ["unfit", "rejected"])
def test_a_round_that_failed_is_tried_again_later_and_later(tmp_path: Path, status: str):
    async def story() -> None:
        async with StubFleet(tmp_path).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0")
            fleet.servers["host-0"].outcomes = [status, status, "updated"]
            fleet.publish()
            took_s = await fleet.until(lambda: fleet.members[0].version == 2, 30)
            assert 3 * ROUND_S + 1.0 + 2.0 <= took_s < 3 * ROUND_S + 1.0 + 2.0 + SLACK_S

    run(story())


def test_a_replica_whose_weights_are_refuted_says_why(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0")
            fleet.servers["host-0"].outcomes = ["unfit"]
            fleet.publish()
            await fleet.until(lambda: fleet.states()["host-0"] != "healthy", 30)
            assert [row.reason for row in fleet.registry.replicas()] == ["why"]

    run(story())


def test_only_rounds_that_fail_in_a_row_cost_a_restart(tmp_path: Path):
    async def story() -> None:
        async with StubFleet(tmp_path).running() as fleet:
            fleet.publish()
            await fleet.until_healthy("host-0")
            server = fleet.servers["host-0"]
            for version in (2, 3, 4):
                server.outcomes = ["unfit", "unfit", "updated"]
                fleet.publish()
                await fleet.until(lambda version=version: fleet.members[0].version == version, 30)
            assert server.asked == [1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
            assert not fleet.named("replica_lost")

    run(story())
