"""Which replica takes a request, how many at once, and what becomes of replicas that fail."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

from learner_jax.runtime.waits import Waits
from serving_bridge.routing.concurrency import Limit
from serving_bridge.routing.dispatch import Dispatcher, NoReplicaError, Slot
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import RolloutSettings
from serving_bridge.vllm.answers import Aborted, Full, Malformed, Rejected, Unreachable
from serving_bridge.vllm.client import VllmClient
from tests.support.rollout_world import FakeReplica, FakeSession, virtually


def dispatcher(names: Sequence[str], *, replicas: dict[str, FakeReplica] | None = None, **settings: Any) -> Dispatcher:
    session = FakeSession(replicas or {})
    given = {"max_prompt_tokens": 8, "max_tokens": 8, "max_wait_s": 30.0} | settings
    found = Dispatcher(
        RolloutSettings(**given), lambda row: VllmClient(row.url, session), Waits(asyncio.get_running_loop().time)
    )
    found.update(rows(names))
    return found


def rows(names: Sequence[str]) -> list[ReplicaRow]:
    return [ReplicaRow(name, f"http://{name}", "healthy", 1, 0, 0.0) for name in names]


def in_flight(found: Dispatcher) -> dict[str, int]:
    return {name: count for name, (count, _) in found.loads().items()}


def test_requests_go_to_the_least_loaded_replica_also_after_some_have_ended() -> None:
    async def story() -> None:
        names = [f"r{i}" for i in range(8)]
        found = dispatcher(names, min_concurrency=200, max_concurrency=200)
        slots = [await found.take(1) for _ in range(800)]
        assert set(in_flight(found).values()) == {100}
        draw = random.Random(0)
        for _ in range(3000):
            found.give_back(slots.pop(draw.randrange(len(slots))), answered=True)
            slots.append(await found.take(1))
        counts = in_flight(found).values()
        assert sum(counts) == 800
        assert max(counts) / (800 / 8) <= 1.1, counts

    virtually(story())


def test_every_request_goes_to_a_replica_that_is_least_loaded_at_that_moment() -> None:
    """Places are found in a heap that is cleared of old entries now and then."""

    async def story() -> None:
        found = dispatcher([f"r{i}" for i in range(12)], min_concurrency=200, max_concurrency=200)
        draw, slots = random.Random(1), []
        for _ in range(3000):
            if len(slots) > draw.randint(50, 150):
                found.give_back(slots.pop(draw.randrange(len(slots))), answered=True)
            before = in_flight(found)
            slots.append(await found.take(draw.randint(1, 9)))
            assert before[slots[-1].target.name] == min(before.values())

    virtually(story())


def test_a_bigger_limit_takes_its_part() -> None:
    async def story() -> None:
        queue = dict(num_requests_running=5, num_requests_waiting=9)
        replicas = {"small": FakeReplica(metrics=queue), "big": FakeReplica()}
        found = dispatcher(list(replicas), replicas=replicas, min_concurrency=10)
        watching = asyncio.create_task(found.watch())
        slots = [await found.take(1) for _ in range(20)]
        await asyncio.sleep(1.5)
        limits = {name: limit for name, (_, limit) in found.loads().items()}
        watching.cancel()
        assert limits == {"small": 10, "big": 20}
        for slot in slots:
            found.give_back(slot, answered=True)
        taken = [await found.take(1) for _ in range(sum(limits.values()))]
        assert in_flight(found) == limits
        for slot in taken:
            found.give_back(slot)
        assert in_flight(found) == {"small": 0, "big": 0}

    virtually(story())


def test_a_prefix_is_followed_until_its_replica_is_clearly_busier() -> None:
    async def story() -> None:
        names = ["a", "b", "c", "d"]
        found = dispatcher(names, min_concurrency=1000, max_concurrency=1000)
        for _ in range(400):
            await found.take(1)
        followed = list(
            itertools.takewhile(lambda name: name == "b", [(await found.take(1, "b")).target.name for _ in range(60)])
        )
        assert 5 <= len(followed) <= 14
        counts = in_flight(found).values()
        assert max(counts) / (sum(counts) / 4) <= 1.1
        assert (await found.take(1, "gone")).target.name in names

    virtually(story())


def test_when_all_are_full_requests_wait_in_order_and_cancelled_ones_leave_nothing_behind() -> None:
    async def story() -> None:
        found = dispatcher(["a"], min_concurrency=2, max_concurrency=2)
        first, second = await found.take(1), await found.take(1)
        order: list[int] = []

        async def ask(number: int) -> Slot:
            slot = await found.take(1)
            order.append(number)
            return slot

        waiting = [asyncio.create_task(ask(number)) for number in range(4)]
        await asyncio.sleep(0.1)
        assert (order, found.num_waiting) == ([], 4)
        waiting[1].cancel()
        found.give_back(first, answered=True)
        waiting[0].cancel()  # it has been given a place that very moment, and must hand it on
        await asyncio.sleep(0.1)
        assert order == [2]
        found.give_back(second, answered=True)
        await asyncio.sleep(0.1)
        assert order == [2, 3]
        for task in waiting[2:]:
            found.give_back(task.result())
        assert (in_flight(found), found.num_waiting) == ({"a": 0}, 0)

    virtually(story())


def test_a_request_of_many_answers_is_taken_whole() -> None:
    async def story() -> None:
        found = dispatcher(["a", "b"], min_concurrency=4, max_concurrency=4)
        await found.take(8)
        await found.take(8)
        assert in_flight(found) == {"a": 8, "b": 8}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await found.take(1)

    virtually(story())


def test_a_line_that_does_not_move_gives_up_and_says_how_things_stand() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        found = dispatcher(["a"], min_concurrency=1, max_concurrency=1)
        slot = await found.take(1)
        began = loop.time()
        waiting = [asyncio.create_task(found.take(1)) for _ in range(2)]
        await asyncio.sleep(20)
        found.give_back(slot, answered=True)  # the line moves: the bound begins anew
        await asyncio.sleep(20)
        assert waiting[0].done()
        assert not waiting[1].done()
        with pytest.raises(NoReplicaError, match=r"max_wait_s = 30 s\): 1 requests wait; a has 1 of 1 in flight"):
            await waiting[1]
        assert loop.time() - began == pytest.approx(50)

    virtually(story())


def test_a_replica_that_fails_in_a_row_is_avoided_longer_and_longer_until_it_answers() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        found = dispatcher(["bad", "good"], failures_to_avoid=3, min_concurrency=50)

        async def fail(slot: Slot) -> None:
            await asyncio.sleep(0.01)
            found.give_back(slot, Unreachable("on purpose"))

        def hold_good() -> None:
            while found.loads()["good"][0] < 40:
                found._grant(found._targets["good"], 1)

        hold_good()
        old = [await found.take(1) for _ in range(5)]
        assert {slot.target.name for slot in old} == {"bad"}
        for slot in old:  # all of them fail together: that is one time of being avoided, not three
            await fail(slot)
        times = []
        for _ in range(3):
            began = loop.time()
            assert {(await found.take(1)).target.name for _ in range(3)} == {"good"}
            while (slot := await found.take(1)).target.name == "good":
                found.give_back(slot)
                await asyncio.sleep(0.05)
            times.append(loop.time() - began)
            await fail(slot)
        assert times == pytest.approx([1, 2, 4], abs=0.1)
        await asyncio.sleep(10)
        slot = await found.take(1)
        found.give_back(slot, answered=True)
        assert slot.target.name == "bad"
        await fail(await found.take(1))
        assert (await found.take(1)).target.name == "bad"
        assert found.totals() == {"bad": (1, 9)}

    virtually(story())


def test_an_answer_makes_good_the_failures_before_it_and_how_long_they_had_it_avoided() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        found = dispatcher(["a"], failures_to_avoid=2)

        async def end(error: Unreachable | None) -> None:
            slot = await found.take(1)
            await asyncio.sleep(0.01)
            found.give_back(slot, error, answered=error is None)

        avoided = []
        for errors in ([Unreachable("x")] * 2, [Unreachable("x")], [None, Unreachable("x")], [Unreachable("x")]):
            for error in errors:
                await end(error)
            began = loop.time()
            found.give_back(await found.take(1))
            avoided.append(loop.time() - began)
        # Twice in a row, once more (twice as long), once after an answer (not at all), and the second in a row.
        assert avoided == pytest.approx([1, 2, 0, 1], abs=0.1)

    virtually(story())


def test_requests_from_before_a_replica_was_avoided_say_nothing_about_it_afterwards() -> None:
    async def story() -> None:
        found = dispatcher(["a"], failures_to_avoid=2, min_concurrency=50)
        old = [await found.take(1) for _ in range(6)]
        for slot in old[:2]:
            await asyncio.sleep(0.1)
            found.give_back(slot, Unreachable("on purpose"))
        await found.take(1)  # a second later
        for slot in old[2:]:
            found.give_back(slot, Unreachable("late"))
        async with asyncio.timeout(0.1):
            assert (await found.take(1)).target.name == "a"

    virtually(story())


def test_aborted_and_wrong_requests_are_not_reported_as_failures() -> None:
    async def story() -> None:
        found = dispatcher(["a"])
        for error in (Aborted("drains"), Rejected("too long"), None):
            found.give_back(await found.take(1), error)
        found.give_back(await found.take(1), answered=True)
        found.give_back(await found.take(1), Unreachable("away"))
        assert found.totals() == {"a": (1, 1)}

    virtually(story())


def test_a_full_replica_is_asked_for_less_and_is_no_failed_one() -> None:
    async def story() -> None:
        found = dispatcher(["a"], failures_to_avoid=2, min_concurrency=2)
        found._set_limit(found._targets["a"], Limit(100))
        for limit in (70, 49):
            slots = [await found.take(1) for _ in range(9)]
            await asyncio.sleep(0.1)
            for slot in slots:  # all were sent before it said so: that is one sign, not nine
                found.give_back(slot, Full("on purpose"))
            assert found.loads() == {"a": (0, limit)}
            await asyncio.sleep(0.1)
        assert (found.totals(), found.take_cuts()) == ({}, 2)
        slots = [await found.take(1) for _ in range(49)]
        late = asyncio.ensure_future(found.take(1))
        await asyncio.sleep(0.1)
        assert not late.done()
        found.give_back(slots[0], answered=True)
        assert (await late).target.name == "a"

    virtually(story())


def test_a_replica_that_comes_back_elsewhere_begins_anew_and_one_that_left_gets_nothing() -> None:
    async def story() -> None:
        found = dispatcher(["a", "b"], failures_to_avoid=1)
        for _ in range(2):
            await asyncio.sleep(0.01)
            found.give_back(await found.take(1), Unreachable("away"))
        found.update([ReplicaRow("a", "http://elsewhere", "healthy", 1, 0, 0.0)])
        slot = await found.take(1)
        assert (slot.target.name, slot.target.client.base_url) == ("a", "http://elsewhere")
        found.update([])
        with pytest.raises(NoReplicaError, match="no replica is ready"):
            await found.take(1)

    virtually(story())


def test_a_replica_that_left_takes_nothing_and_is_no_part_of_what_is_even() -> None:
    async def story() -> None:
        found = dispatcher(["a", "b", "c", "d"], min_concurrency=1000, max_concurrency=1000)
        await found.take(1)  # all of them are candidates
        found.update(rows(["a", "b"]))
        slots = [await found.take(1) for _ in range(400)]
        assert {slot.target.name for slot in slots} == {"a", "b"}
        followed = [(await found.take(1, "b")).target.name for _ in range(60)]
        assert followed[:5] == ["b"] * 5
        assert "a" in followed
        found.update([])
        with pytest.raises(NoReplicaError, match="no replica is ready"):
            await found.take(1)

    virtually(story())


def test_requests_that_ended_are_no_part_of_what_is_even() -> None:
    async def story() -> None:
        found = dispatcher(["a", "b"], min_concurrency=1000, max_concurrency=1000)
        for _ in range(500):
            found.give_back(await found.take(1), answered=True)
        followed = [(await found.take(1, "b")).target.name for _ in range(60)]
        assert followed[:5] == ["b"] * 5
        assert "a" in followed, "a prefix is followed to a replica that has all requests"

    virtually(story())


# The limit of a dispatcher


def test_metrics_that_are_polled_move_the_limit_and_wake_who_waits() -> None:
    async def story() -> None:
        replicas = {"a": FakeReplica(metrics=dict(num_requests_running=4, num_requests_waiting=0))}
        found = dispatcher(["a", "dead"], replicas=replicas, min_concurrency=4, max_concurrency=64)
        found.update(rows(["a"]))
        watching = asyncio.create_task(found.watch())
        await asyncio.gather(*(found.take(1) for _ in range(20)))
        assert found.loads()["a"] == (20, 32)
        replicas["a"].metrics |= dict(num_requests_running=8, num_requests_waiting=12)
        await asyncio.sleep(2.5)
        assert found.loads()["a"][1] < 32
        assert found.take_cuts() >= 1
        assert found.take_cuts() == 0
        watching.cancel()

    virtually(story())


@pytest.mark.parametrize("name", ["num_requests_running", "num_requests_waiting", "num_preemptions_total"])
def test_a_metric_that_does_not_come_is_no_idle_server(name: str) -> None:
    async def story() -> None:
        metrics: dict[str, Any] = {"num_requests_running": 4, name: None}
        found = dispatcher(["a"], replicas={"a": FakeReplica(metrics=metrics)}, min_concurrency=4, max_concurrency=64)
        found.update(rows(["a"]))
        watching = asyncio.create_task(found.watch())
        await asyncio.gather(*(found.take(1) for _ in range(4)))
        await asyncio.sleep(4.5)
        assert found.loads()["a"] == (4, 4)
        watching.cancel()
        client = VllmClient("http://a", FakeSession({"a": FakeReplica(metrics=metrics)}))
        if "requests" in name:
            with pytest.raises(Malformed, match=f"has no metric vllm:{name}"):
                await client.num_requests()

    virtually(story())


def test_the_benchmark_measures_a_small_fleet() -> None:
    from tools.bench.rollout import dispatch

    thresholds = gc.get_threshold()
    try:
        found = asyncio.run(dispatch.measure(40, 4, 16, 0.5, answer_s=0.1))
    finally:
        gc.set_threshold(*thresholds)
    assert 40 * 16 / (0.1 * 1.5 * 1.5) / 3 < found.tokens_per_s < 40 * 24 / (0.1 * 0.7 * 0.5)
    assert 1.0 <= found.fairness.median <= found.fairness_max
    assert found.take_us > 0
