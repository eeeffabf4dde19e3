"""A worker's claims and groups: held back while the queue is full, renewed in time, handed on at a stop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from learner_jax.contracts.weights import RecordLimits
from learner_jax.runtime.waits import Waits, WaitTimeoutError
from serving_bridge.queue.bounds import QueueBounds
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from serving_bridge.rollout.worker_queue import WorkerQueue
from serving_bridge.text.tokenizer import Tokenizer
from tests.support.rollout_bench import Bench, error_of, two
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import FakeReplica, Inline
from tests.support.trajectories import make_group


def test_a_full_queue_holds_groups_back_until_there_is_room(tmp_path: Path, tokenizer: Tokenizer) -> None:
    queue = TrajectoryQueue(tmp_path / "state.db", bounds=QueueBounds(max_groups=1))
    pace = Pace(max_staleness=3, groups_per_step=2, total_steps=2)
    bench = Bench(tmp_path, tokenizer, FakeReplica(), queue=queue, pace=pace, concurrent_groups=1)
    bench.ready()
    trained: list[str] = []

    def train() -> bool:
        if bench.total("queue_full_waits") < 1 + len(trained):
            return False
        for group in queue.consumer.lease_groups(4, trained_version=1, max_staleness=9).groups:
            queue.consumer.mark_trained([group[0].group_id], completed_steps=0, trained_version=1)
            queue.consumer.acknowledge([group[0].group_id])
            trained.append(group[0].group_id)
        return len(trained) >= 2

    bench.run(train)
    assert len(set(trained)) == len(trained)


def test_a_full_queue_that_stays_full_is_a_clear_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    queue = TrajectoryQueue(tmp_path / "state.db", bounds=QueueBounds(max_groups=1))
    pace = Pace(max_staleness=3, groups_per_step=4, total_steps=9)
    bench = Bench(tmp_path, tokenizer, FakeReplica(), queue=queue, pace=pace, concurrent_groups=1, max_wait_s=0.7)
    bench.ready()
    with error_of(bench, WaitTimeoutError, "for room in the queue from learner and gave up .* the queue is full"):
        assert queue.producer.resume_claims("w") == [1, 2]


def test_a_group_that_the_run_does_not_take_is_given_up_and_the_others_are_put(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    limits = RecordLimits(vocab_size=50, max_length=64, group_size=2)
    queue = TrajectoryQueue(tmp_path / "state.db", limits=limits)
    bench = Bench(tmp_path, tokenizer, FakeReplica(script=[two(55, 1)]), queue=queue)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    assert (bench.num_ready(), bench.total("failed_groups"), queue.admin.progress().num_claimed) == (2, 1, 0)


def test_one_group_that_the_run_does_not_take_costs_no_other_of_its_batch(tmp_path: Path) -> None:
    queue = TrajectoryQueue(tmp_path / "state.db", limits=RecordLimits(vocab_size=50, max_length=64, group_size=2))
    count: Counter[str] = Counter()
    link = WorkerQueue(
        queue.producer,
        "w",
        thread=Inline(),
        waits=Waits(),
        max_wait_s=5,
        renew_every_s=9,
        count=count,
        log=lambda *_, **__: None,
    )

    async def story() -> None:
        pace = Pace(max_staleness=0, groups_per_step=4, total_steps=1)
        for index in await link.claim(4, pace, served_step=0):
            group = make_group(f"run/{index}", size=2, rewards=[0.0, 1.0])
            link.add(index, [replace(t, tokens=t.tokens + 50 * (index == 2)) for t in group])
        await link.put()

    asyncio.run(story())
    progress = queue.admin.progress()
    assert (progress.num_ready, progress.num_claimed, count["failed_groups"]) == (3, 0, 1)


def test_prompts_claimed_ahead_take_the_places_of_groups_that_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    most = [0]

    def answer(body: dict[str, Any]) -> Any:
        async def slow() -> Any:
            most[0] = max(most[0], len(bench.replicas["r0"].bodies) - ended[0])
            await asyncio.sleep(0.05)
            ended[0] += 1
            return two(9, 1)(body)

        return slow()

    ended = [0]
    pace = Pace(max_staleness=0, groups_per_step=20, total_steps=1)
    bench = Bench(tmp_path, tokenizer, FakeReplica(script=[answer] * 20), pace=pace, concurrent_groups=4)
    bench.ready()
    claims = [0]

    def look() -> bool:
        progress = bench.queue.admin.progress()
        claims[0] = max(claims[0], progress.num_claimed)
        return progress.num_ready == 20

    bench.run(look)
    assert most[0] == 4
    assert claims[0] >= 5


def test_claims_are_renewed_and_what_was_handed_on_is_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def slow(body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.8)
        return two(9, 1)(body)

    queue = TrajectoryQueue(tmp_path / "state.db", claim_lease_s=0.4)
    other = TrajectoryQueue(tmp_path / "state.db", claim_lease_s=60)
    bench = Bench(tmp_path, tokenizer, FakeReplica(script=[slow] * 2), queue=queue)
    bench.worker.renew_every_s = 0.1
    bench.ready()
    taken: list[int] = []

    def steal() -> bool:
        """After one renewal too few, nothing is to be had; once the claim is handed on, another worker has it."""
        if not taken and bench.replicas["r0"].bodies and time.monotonic() - began > 0.6:
            assert other.producer.claim_prompts("thief", 1, bench.worker.pace, served_step=-9) == []
            queue.database.write(lambda s: s.execute("UPDATE claims SET expires_s = 0 WHERE prompt_index = 0"))
            taken.extend(other.producer.claim_prompts("thief", 1, bench.worker.pace, served_step=-9))
        return bool(taken) and bench.num_ready() == 1

    began = time.monotonic()
    bench.run(steal)
    assert taken == [0]
    assert bench.total("lost_claims") == 1
    (group,) = queue.consumer.lease_groups(9, trained_version=1, max_staleness=1).groups
    assert group[0].group_id == "run/1"


def test_a_stop_lets_running_groups_end_and_hands_the_rest_on_at_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def taking(seconds: float) -> Any:
        async def answer(body: dict[str, Any]) -> Any:
            await asyncio.sleep(seconds)
            return two(9, 1)(body)

        return answer

    replica = FakeReplica(script=[taking(0.3), taking(60)])
    bench = Bench(tmp_path, tokenizer, replica, should_stop=lambda: len(replica.bodies) == 2, drain_s=0.6)
    bench.ready()
    began = time.monotonic()
    asyncio.run(bench.worker.run())
    assert 0.5 < time.monotonic() - began < 2.0
    assert bench.num_ready() == 1
    other = TrajectoryQueue(tmp_path / "state.db")
    assert other.producer.claim_prompts("other", 9, bench.worker.pace, served_step=0) == [1]
