"""Replicas that die, hang, fail requests, come and go: what the controller does, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serving_bridge.fleet.caretaker import NOTICE_S
from serving_bridge.fleet.looks import FleetError
from serving_bridge.fleet.orders import OrderBook
from serving_bridge.processes.restarts import RestartBudget
from serving_bridge.routing.lifecycle import TAKES_REQUESTS
from serving_bridge.vllm.server_checks import ReplicaStartError
from tests.support.stub_fleet import ROUND_S, START_S, StubFleet, StubServer
from tests.support.virtual_time import run

#: what the controller's own ticks and files may add to any time
SLACK_S = 1.0


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

            def is_done() -> bool:
                nonlocal fewest
                fewest = min(fewest, list(fleet.states().values()).count("healthy"))
                status = book.status()
                return status is not None and status.order_id == "one" and not status.doing

            await fleet.until(is_done, 60)
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


def test_every_state_that_workers_route_to_is_one_of_the_two_serving_ones():
    assert TAKES_REQUESTS == ("healthy", "suspect")


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
