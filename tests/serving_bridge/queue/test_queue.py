"""The queue's contract on both engines: each group is taken, trained on and recorded once, or not at all."""

from __future__ import annotations

import pytest

from serving_bridge.database.database import open_database
from serving_bridge.queue.consumer import LeaseLostError
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.queue_engines import (
    PACE,
    Clock,
    CountedDatabase,
    Place,
    clock,
    execute,
    lease,
    place,
    put,
    queue,
    train,
)
from tests.support.trajectories import make_group

__all__ = ["clock", "place", "queue"]  # fixtures


def test_put_is_idempotent_and_leases_come_oldest_first(queue: TrajectoryQueue) -> None:
    assert put(queue, 0, 1, 2) == 3
    assert put(queue, 0, 1) == 0
    assert put(queue, 1, 3) == 1
    assert lease(queue, 2) == ["run/0", "run/1"]
    assert lease(queue) == ["run/2", "run/3"]
    assert lease(queue) == []


def test_groups_come_back_as_they_were_put(queue: TrajectoryQueue) -> None:
    group = make_group("run/0", size=3, answer_tokens=70, seed=4)
    queue.producer.put([(0, group)])
    (found,) = queue.consumer.lease_groups(1, trained_version=1, max_staleness=0).groups
    assert [t.trajectory_id for t in found] == [t.trajectory_id for t in group]
    for ours, theirs in zip(group, found, strict=True):
        assert ours.tokens.tobytes() == theirs.tokens.tobytes()
        assert ours.behavior_logprobs.tobytes() == theirs.behavior_logprobs.tobytes()


def test_a_group_is_never_available_again_after_training(queue: TrajectoryQueue) -> None:
    put(queue, 0)
    lease(queue)
    train(queue, ["run/0"])
    queue.consumer.acknowledge(["run/0"])
    assert put(queue, 0) == 0
    assert lease(queue) == []
    progress = queue.admin.progress()
    assert (progress.num_acknowledged, progress.completed_steps, progress.trained_version) == (1, 1, 2)
    assert execute(queue, "SELECT count(*) FROM payloads") == [(0,)]


def test_acknowledge_frees_only_what_was_trained(queue: TrajectoryQueue) -> None:
    put(queue, 0)
    queue.consumer.acknowledge(["run/0"])
    assert lease(queue) == ["run/0"]


def test_training_on_several_groups_is_recorded_whole_or_not_at_all(
    queue: TrajectoryQueue, place: Place, clock: Clock
) -> None:
    put(queue, 0, 1)
    lease(queue)
    clock.now_s += 61
    lease(place.open(), 1)
    with pytest.raises(LeaseLostError):
        train(queue, ["run/1", "run/0"])
    assert queue.admin.progress().num_trained == 0


def test_a_group_that_comes_twice_at_once_is_taken_once(queue: TrajectoryQueue) -> None:
    first, second = make_group("run/0", seed=1), make_group("run/0", seed=2)
    assert queue.producer.put([(0, first), (1, make_group("run/1")), (0, second)]) == 2
    groups = queue.consumer.lease_groups(5, trained_version=1, max_staleness=5).groups
    assert [group[0].group_id for group in groups] == ["run/0", "run/1"]
    assert groups[0][0].tokens.tolist() == first[0].tokens.tolist()


def test_asking_in_vain_writes_nothing(place: Place) -> None:
    place.open()
    counted = CountedDatabase(open_database(place.url))
    queue = TrajectoryQueue(database=counted, clock=place.clock)
    assert len(queue.producer.claim_prompts("w", 10, PACE, served_step=0)) == 4
    before = counted.num_writes
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == []
    assert lease(queue) == []
    queue.admin.progress()
    assert counted.num_writes == before
    queue.close()


def test_a_failure_before_the_commit_changes_nothing(place: Place) -> None:
    def fail(number: int) -> None:
        raise OSError("before the commit")

    place.open()
    inner = open_database(place.url)
    failing = TrajectoryQueue(database=CountedDatabase(inner, fail), clock=place.clock)
    with pytest.raises(OSError, match="before the commit"):
        put(failing, 0)
    with pytest.raises(OSError, match="before the commit"):
        failing.producer.claim_prompts("w", 1, PACE, served_step=0)
    progress = failing.admin.progress()
    assert (progress.num_ready, progress.num_claimed, progress.next_prompt) == (0, 0, 0)
    inner.close()
