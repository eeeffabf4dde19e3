"""Dead letters on both engines: what becomes one and why, how they get another chance, how many are kept."""

from __future__ import annotations

import pytest

from serving_bridge.queue.bounds import QueueBounds
from serving_bridge.queue.consumer import LeaseLostError
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.queue_engines import PACE, Clock, Place, clock, execute, lease, place, put, queue, train

__all__ = ["clock", "place", "queue"]  # fixtures


def test_too_many_tries_make_a_dead_letter_that_keeps_its_reason(queue: TrajectoryQueue) -> None:
    put(queue, 0)
    for _ in range(2):
        assert lease(queue) == ["run/0"]
        queue.consumer.reject("run/0", "the learner choked")
    assert lease(queue) == []
    assert queue.admin.dead_letters() == [("run/0", "the learner choked")]


def test_expired_leases_also_end_as_dead_letters(queue: TrajectoryQueue, place: Place, clock: Clock) -> None:
    put(queue, 0)
    for _ in range(2):
        assert lease(place.open()) == ["run/0"]
        clock.now_s += 61
    assert lease(queue) == []
    assert queue.admin.dead_letters() == [("run/0", "lease expired")]


def test_damaged_payload_becomes_a_dead_letter_and_the_rest_goes_on(queue: TrajectoryQueue) -> None:
    put(queue, 0, 1)
    execute(queue, "UPDATE payloads SET payload = substr(payload, 1, 40) WHERE sequence = 1")
    assert lease(queue) == ["run/1"]
    ((group_id, reason),) = queue.admin.dead_letters()
    assert group_id == "run/0"
    assert "not a group of trajectories" in reason


def test_groups_older_than_the_age_limit_become_dead_letters(place: Place, clock: Clock) -> None:
    queue = place.open(bounds=QueueBounds(max_age_s=100))
    put(queue, 0)
    clock.now_s += 60
    put(queue, 1)
    clock.now_s += 60
    assert lease(queue) == ["run/1"]
    assert queue.admin.dead_letters() == [("run/0", "older than 100 s (store.max_age_s)")]
    queue.admin.requeue()
    assert lease(queue) == ["run/0"]


def test_a_group_that_can_not_be_read_is_buried(queue: TrajectoryQueue, place: Place) -> None:
    put(queue, 0)
    execute(queue, "UPDATE payloads SET payload = ?", (b"nonsense",))
    queue.consumer.lease(1, trained_version=1, max_staleness=5)
    reader = place.open()
    read = reader.consumer.read(["run/0"])
    assert read.groups == {}
    assert "not a group of trajectories" in read.unreadable["run/0"]
    with pytest.raises(LeaseLostError):
        reader.consumer.bury("run/0", "not mine")
    queue.consumer.bury("run/0", read.unreadable["run/0"])
    assert queue.admin.dead_letters() == [("run/0", read.unreadable["run/0"])]
    assert queue.admin.progress().num_leased == 0


def test_dead_letters_get_another_chance_with_what_they_held(queue: TrajectoryQueue, clock: Clock) -> None:
    put(queue, 0, 1, 2)
    for group_id in lease(queue):
        queue.consumer.bury(group_id, "by hand")
    assert queue.admin.requeue(["run/1", "run/7"]) == ["run/1"]
    assert queue.admin.dead_letters() == [("run/0", "by hand"), ("run/2", "by hand")]
    assert lease(queue) == ["run/1"]
    assert sorted(queue.admin.requeue()) == ["run/0", "run/2"]
    assert lease(queue) == ["run/0", "run/2"]
    queue.consumer.reject("run/0", "first try of the new life")
    assert lease(queue) == ["run/0"]


def test_a_requeued_dead_letter_does_not_lower_the_watermark(queue: TrajectoryQueue) -> None:
    claimed = queue.producer.claim_prompts("w", 4, PACE, served_step=0)
    put(queue, *claimed)
    lease(queue)
    queue.consumer.bury("run/0", "x")
    train(queue, ["run/1", "run/2", "run/3"])
    queue.consumer.acknowledge(["run/1", "run/2", "run/3"])
    assert execute(queue, "SELECT group_id FROM groups") == [("run/0",)]
    queue.admin.requeue()
    queue.consumer.acknowledge([])
    assert put(queue, 0, 1, 2, 3) == 0
    assert lease(queue) == ["run/0"]


def test_only_the_newest_dead_letters_are_kept(place: Place) -> None:
    queue = place.open(bounds=QueueBounds(max_dead=2))
    claimed = queue.producer.claim_prompts("w", 4, PACE, served_step=0)
    put(queue, *claimed)
    for group_id in lease(queue):
        queue.consumer.bury(group_id, "x")
    queue.consumer.acknowledge([])
    assert [group_id for group_id, _ in queue.admin.dead_letters()] == ["run/2", "run/3"]
    assert queue.admin.progress().num_dead == 4
    assert put(queue, 0) == 0
    assert execute(queue, "SELECT count(*) FROM payloads") == [(2,)]
