"""How a running worker ends, and in which order: what is finished is put before claims are given away."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from learner_jax.runtime import Waits
from serving_bridge.queue import QueueFullError
from serving_bridge.rollout.interval import Interval
from serving_bridge.rollout.running import RunningRollouts
from serving_bridge.rollout.worker_queue import WorkerQueue
from serving_bridge.settings import RolloutSettings
from tests.support.rollout_world import Inline, virtually


class Noted:
    """Stands for queue, replicas, dispatcher and maker at once, and notes what is asked of them in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.is_full = False
        self.playing: set[int] = set()
        self.scoring: set[int] = set()
        self.held: set[int] = set()
        self.claimed: list[int] = []
        self.ready = [SimpleNamespace(step=3), SimpleNamespace(step=2)]
        self.asked: list[tuple[int, int]] = []
        self.lost: set[int] = set()
        self.ended: list[int] = []

    async def put(self) -> None:
        self.did.append("put")

    async def hand_on(self) -> None:
        self.did.append("hand on")

    async def report_requests(self) -> None:
        self.did.append("report")

    def wait_longer(self) -> None:
        self.did.append("waits longer")

    async def renew(self, held: Sequence[int]) -> set[int]:
        self.held = set(held)
        return self.lost

    async def claim(self, limit: int, pace: Any, *, served_step: int) -> list[int]:
        self.asked.append((limit, served_step))
        claimed, self.claimed = self.claimed, []
        return claimed

    async def make(self, index: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.did.append(f"cancelled {index}")
            raise
        self.ended.append(index)

    def end(self) -> None:
        self.did.append("no replica is waited for")

    def figures(self) -> dict[str, Any]:
        return {}


def running(
    noted: Any, records: list[dict[str, Any]], *, hold: Callable[[], str | None] | None = None, **changed: Any
) -> RunningRollouts:
    settings = RolloutSettings.model_validate(
        {"group_size": 2, "max_tokens": 4, "max_prompt_tokens": 8, "concurrent_groups": 8} | changed
    )
    return RunningRollouts(
        settings, noted, noted, noted, noted, noted,
        pace=None,  # type: ignore[arg-type]
        interval=Interval(lambda event, **fields: records.append(fields), 100.0),
        verdicts=SimpleNamespace(take=dict),  # type: ignore[arg-type]
        waits=Waits(asyncio.get_running_loop().time),
        should_stop=lambda: False,
        hold=hold,
        tick_s=0.5,
    )  # fmt: skip


def test_the_end_puts_what_has_ended_and_then_writes_what_became_of_it() -> None:
    noted, records = Noted(), list[dict[str, Any]]()

    async def story() -> None:
        worker = running(noted, records)
        worker._start([5])
        await asyncio.sleep(0)
        real = noted.put

        async def put() -> None:
            worker._interval.count["failed_groups"] += 1
            await real()

        noted.put = put  # type: ignore[method-assign]
        await worker.end()

    virtually(story())
    assert noted.did == ["cancelled 5", "no replica is waited for", "put", "report"]
    assert [record["failed_groups"] for record in records] == [1]


def test_a_stop_puts_before_it_hands_on_and_cancels_what_waits_for_a_place_at_once() -> None:
    noted = Noted()

    async def story() -> float:
        worker = running(noted, [], drain_s=3.0)
        noted.playing = {1}
        worker._start([1, 2])
        await asyncio.sleep(0)
        before = asyncio.get_running_loop().time()
        await worker._drain()
        return asyncio.get_running_loop().time() - before

    assert 3.0 <= virtually(story()) < 4.0
    assert noted.did[0] == "put"
    assert noted.did[1] == "cancelled 2"
    assert [did for did in noted.did if did != "report"][-3:] == ["cancelled 1", "put", "hand on"]


def test_a_prompt_that_is_claimed_twice_is_made_once_and_again_only_after_its_end() -> None:
    noted = Noted()

    async def story() -> None:
        worker = running(noted, [])
        worker._start([1, 1, 2])
        await asyncio.sleep(0)
        worker._start([1])
        await asyncio.sleep(61)
        assert sorted(noted.ended) == [1, 2]
        worker._start([1])
        await asyncio.sleep(61)

    virtually(story())
    assert sorted(noted.ended) == [1, 1, 2]


@pytest.mark.parametrize(
    ("running_groups", "full", "ready", "asked"),
    [(0, False, True, [(10, 2)]), (9, False, True, [(1, 2)]), (10, False, True, []), (0, True, True, []),
     (0, False, False, [])],
)  # fmt: skip
def test_as_many_are_claimed_as_have_a_place_or_wait_for_one(
    running_groups: int, full: bool, ready: bool, asked: list[tuple[int, int]]
) -> None:
    """Eight places and two ahead; the replica that is furthest behind says how stale they will be."""
    noted = Noted()
    noted.is_full = full
    noted.ready = noted.ready if ready else []

    async def story() -> None:
        worker = running(noted, [])
        worker._start(range(running_groups))
        await worker._claim()
        await worker._cancel()

    virtually(story())
    assert noted.asked == asked


def test_groups_that_only_wait_for_verdicts_take_no_place() -> None:
    noted = Noted()
    noted.scoring = {0, 1, 2}

    async def story() -> None:
        worker = running(noted, [])
        worker._start(range(9))
        await worker._claim()
        await worker._cancel()

    virtually(story())
    assert noted.asked == [(4, 2)]


def test_only_a_worker_that_could_sample_and_may_not_waits_for_the_gate() -> None:
    async def waits_for(running_groups: int, full: bool, ready: bool) -> bool:
        noted = Noted()
        noted.is_full = full
        noted.ready = noted.ready if ready else []
        worker = running(noted, [])
        worker._start(range(running_groups))
        await worker._claim()
        await worker._cancel()
        return worker._closed.remaining_s < float("inf")

    found = {
        (groups, full, ready): virtually(waits_for(groups, full, ready))
        for groups in (0, 1)
        for full in (False, True)
        for ready in (False, True)
    }
    assert [case for case, waits in found.items() if waits] == [(0, False, True)]


def test_a_lost_claim_ends_its_group_and_no_other() -> None:
    noted = Noted()
    counts: Counter[str] = Counter()

    async def story() -> None:
        worker = running(noted, [])
        worker._start([1, 2])
        await asyncio.sleep(0)
        noted.lost = {2, 7}
        await worker._keep_up()
        counts.update(worker._interval.count)
        noted.lost = set()
        await worker._keep_up()
        assert noted.held == {1}
        await worker._cancel()

    virtually(story())
    assert counts["lost_claims"] == 1
    assert noted.did[0] == "cancelled 2"


def test_time_is_idle_while_nothing_is_played() -> None:
    noted = Noted()

    async def story() -> tuple[float, float]:
        worker = running(noted, [])
        await worker._keep_up()
        idle_s = worker._interval.idle_s
        noted.playing = {1}
        await worker._keep_up()
        return idle_s, worker._interval.idle_s

    assert virtually(story()) == (0.5, 0.5)


def test_the_first_failure_of_what_runs_is_raised() -> None:
    noted = Noted()

    async def fails(error: Exception) -> None:
        raise error

    async def story() -> None:
        worker = running(noted, [])
        worker._in_background(fails(ZeroDivisionError("first")))
        worker._in_background(fails(KeyError("second")))
        await asyncio.sleep(0.1)
        await worker._keep_up()

    with pytest.raises(ZeroDivisionError, match="first"):
        virtually(story())


def test_the_run_s_progress_is_asked_for_once_a_tick_and_starts_the_gate_s_bound_anew() -> None:
    noted = Noted()
    asked: list[float] = []

    async def look(now_s: float) -> bool:
        return False

    async def story() -> None:
        loop = asyncio.get_running_loop()

        async def progress() -> Any:
            asked.append(loop.time())
            return SimpleNamespace(finished=len(asked) == 4, completed_steps=len(asked) // 3)

        noted.look, noted.progress = look, progress  # type: ignore[attr-defined]
        worker = running(noted, [], max_wait_s=50)
        await worker._claim()
        left = []
        while not await worker._look_around():
            left.append(worker._closed.remaining_s)
            await asyncio.sleep(0.2)
        assert [round(b - a, 1) for a, b in itertools.pairwise(asked)] == [0.6] * 3
        began = [index for index, seconds in enumerate(left) if seconds == 50]
        assert began == [0, 6]  # at the first look, and where a step was completed

    virtually(story())


def test_while_training_is_held_the_gate_s_bound_begins_anew_at_each_look_and_after_it_once() -> None:
    noted = Noted()
    reasons = ["held"] * 3 + [None] * 3

    async def look(now_s: float) -> bool:
        return False

    async def progress() -> Any:
        return SimpleNamespace(finished=not reasons, completed_steps=7)

    async def story() -> list[float]:
        noted.look, noted.progress = look, progress  # type: ignore[attr-defined]
        worker = running(noted, [], hold=lambda: reasons.pop(0), max_wait_s=50)
        await worker._claim()
        left = []
        while not await worker._look_around():
            left.append(round(worker._closed.remaining_s, 6))
            await asyncio.sleep(10)
        return left

    assert virtually(story()) == [50, 50, 50, 40, 30]
    assert noted.did == ["waits longer"] * 3


class Offered:
    """A queue that is full until told otherwise."""

    def __init__(self) -> None:
        self.full = True
        self.batches: list[int] = []

    def put(self, batch: Sequence[Any], *, worker: str) -> None:
        self.batches.append(len(batch))
        if self.full:
            raise QueueFullError("full", retry_after_s=2.0)


def test_a_full_queue_is_offered_the_groups_again_when_it_says_and_nothing_is_never_offered() -> None:
    queue: Any = Offered()

    async def story() -> None:
        link = WorkerQueue(
            queue, "w", thread=Inline(), waits=Waits(), max_wait_s=9, renew_every_s=9, count=Counter(),
            log=lambda *_, **__: None,
        )  # fmt: skip
        await link.put()
        assert queue.batches == []
        link.add(1, [])
        await link.put()
        link.add(2, [])
        await link.put()
        assert (queue.batches, link.is_full) == ([1], True)
        await asyncio.sleep(2)
        queue.full = False
        await link.put()
        assert (queue.batches, link.is_full) == ([1, 2], False)
        await link.put()
        assert queue.batches == [1, 2]

    virtually(story())
