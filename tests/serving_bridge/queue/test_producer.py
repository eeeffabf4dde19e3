"""The rollout workers' side on both engines: claims, the staleness gate, limits of what is taken in, back-pressure."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from learner_jax.contracts.weights import ContractError, RecordLimits
from serving_bridge.queue.bounds import QueueBounds, QueueFullError
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from tests.support.queue_engines import PACE, Clock, Place, clock, lease, place, put, queue, train
from tests.support.trajectories import make_group

__all__ = ["clock", "place", "queue"]  # fixtures


def test_gate_opens_only_with_steps_that_the_fleet_serves(queue: TrajectoryQueue) -> None:
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == [0, 1, 2, 3]
    put(queue, 0, 1, 2, 3)
    train(queue, lease(queue, 2))
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == []
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=1) == [4, 5]


def test_claims_survive_their_worker_and_are_handed_on(queue: TrajectoryQueue, place: Place, clock: Clock) -> None:
    assert queue.producer.claim_prompts("a", 2, PACE, served_step=0) == [0, 1]
    again = place.open()
    assert again.producer.resume_claims("a") == [0, 1]
    assert again.producer.resume_claims("b") == []
    clock.now_s += 61
    assert again.producer.claim_prompts("b", 1, PACE, served_step=0) == [0]
    assert again.producer.claim_prompts("b", 9, PACE, served_step=0) == [1, 2, 3]


def test_claims_that_are_renewed_stay(queue: TrajectoryQueue, clock: Clock) -> None:
    assert queue.producer.claim_prompts("a", 2, PACE, served_step=0) == [0, 1]
    assert queue.producer.claim_prompts("dead", 2, PACE, served_step=0) == [2, 3]
    for _ in range(3):
        clock.now_s += 40
        assert queue.producer.renew_claims("a") == [0, 1]
    assert queue.producer.claim_prompts("b", 9, PACE, served_step=0) == [2, 3]
    put(queue, 1)
    queue.producer.release_claim(2, worker="dead")  # it was handed on
    assert queue.admin.progress().num_claimed == 3
    queue.producer.release_claim(2, worker="b")
    assert (
        queue.producer.renew_claims("a"),
        queue.producer.renew_claims("b"),
        queue.producer.renew_claims("dead"),
    ) == ([0], [3], [])


def _claim_many(place: Place, worker: str) -> list[int]:
    queue = TrajectoryQueue(place.url)
    pace = Pace(max_staleness=0, groups_per_step=100, total_steps=1)
    mine: list[int] = []
    while got := queue.producer.claim_prompts(worker, 3, pace, served_step=0):
        mine += got
        time.sleep(0.001)  # engines are not fair to those who wait
    queue.close()
    return mine


def test_concurrent_workers_open_and_share_prompts_without_overlap(place: Place) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda worker: _claim_many(place, worker), ["a", "b", "c"]))
    assert sum(map(bool, found)) > 1
    assert sorted(index for mine in found for index in mine) == list(range(100))


def test_groups_outside_of_the_limits_are_refused_and_those_inside_already_buried(place: Place) -> None:
    limits = RecordLimits(vocab_size=32, max_length=5, group_size=2)
    queue = place.open(limits=limits)
    with pytest.raises(ContractError, match="3 trajectories, expected 2"):
        queue.producer.put([(0, make_group("run/0")), (1, make_group("run/1", size=3))])
    assert queue.admin.progress().num_ready == 0
    put(place.open(), 0)
    put(place.open(), 1, answer_tokens=3)
    assert lease(queue) == ["run/0"]
    ((group_id, reason),) = queue.admin.dead_letters()
    assert (group_id, "6 tokens, expected at most 5" in reason) == ("run/1", True)
    queue.admin.requeue()
    queue.consumer.lease(1, trained_version=1, max_staleness=5)
    assert "6 tokens" in queue.consumer.read(["run/1"]).unreadable["run/1"]


def test_a_payload_above_the_size_limit_is_refused(place: Place) -> None:
    queue = place.open(bounds=QueueBounds(max_group_bytes=1000))
    assert put(queue, 0) == 1
    with pytest.raises(ContractError, match=r"run/1 has \d+ bytes, expected at most 1000 \(store.max_group_bytes\)"):
        put(queue, 1, answer_tokens=100)


@pytest.mark.parametrize("bounds", [QueueBounds(max_groups=3), QueueBounds(max_bytes=2600)])
def test_a_full_queue_refuses_until_the_learner_has_trained(place: Place, bounds: QueueBounds) -> None:
    queue = place.open(bounds=bounds)
    assert put(queue, 0, 1) == 2
    with pytest.raises(QueueFullError, match="would hold 4 groups") as refused:
        put(queue, 2, 3)
    assert refused.value.retry_after_s > 0
    assert queue.admin.progress().num_ready == 2
    assert put(queue, 2) == 1
    leased = lease(queue, 1)
    with pytest.raises(QueueFullError):
        put(queue, 3)  # leased ones may come back
    train(queue, leased)
    assert put(queue, 3) == 1


def test_a_learner_that_gathers_more_than_the_queue_may_hold_is_not_starved(place: Place) -> None:
    queue = place.open(bounds=QueueBounds(max_groups=2))
    assert put(queue, 0, 1) == 2
    assert len(lease(queue)) == 2
    assert put(queue, 2) == 1
    assert put(queue, 0, 2) == 0  # known ones are no burden to a queue that is too full
    assert len(lease(queue)) == 1
