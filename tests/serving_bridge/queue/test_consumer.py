"""The learner's side on both engines: leases, fencing of late consumers, dropped stale groups, recovery."""

from __future__ import annotations

import dataclasses

import pytest

from serving_bridge.queue.bounds import QueueError
from serving_bridge.queue.consumer import LeaseLostError
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.queue_engines import PACE, Clock, Place, clock, lease, place, put, queue, train
from tests.support.trajectories import make_group

__all__ = ["clock", "place", "queue"]  # fixtures


def test_higher_priority_comes_first_then_age(queue: TrajectoryQueue) -> None:
    put(queue, 0, 1)
    queue.producer.put([(i, make_group(f"run/{i}")) for i in (2, 3)], priority=5)
    queue.producer.put([(4, make_group("run/4"))], priority=-1)
    assert lease(queue) == ["run/2", "run/3", "run/0", "run/1", "run/4"]


def test_expired_lease_returns_and_the_late_consumer_is_fenced_off(
    queue: TrajectoryQueue, place: Place, clock: Clock
) -> None:
    put(queue, 0)
    assert lease(queue) == ["run/0"]
    clock.now_s += 61
    other = place.open()
    assert lease(other) == ["run/0"]
    with pytest.raises(LeaseLostError, match="run/0 is leased and no longer leased to this consumer"):
        train(queue, ["run/0"])
    assert queue.admin.progress().completed_steps == 0
    train(other, ["run/0"])
    assert queue.admin.progress().num_trained == 1


def test_what_a_consumer_gathers_does_not_come_to_it_twice_however_long_it_takes(
    queue: TrajectoryQueue, place: Place, clock: Clock
) -> None:
    put(queue, 0, 1)
    assert lease(queue, 1) == ["run/0"]
    clock.now_s += 10_000  # a slow step, or a clock that was put right
    assert lease(queue) == ["run/1"]
    clock.now_s += 59
    assert lease(place.open()) == []
    train(queue, ["run/0", "run/1"])
    assert queue.admin.progress().num_trained == 2


def test_stale_groups_are_dropped_counted_and_their_place_refunded(queue: TrajectoryQueue) -> None:
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == [0, 1, 2, 3]
    put(queue, 0, 1, 2, 3, version=1)
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == []
    report = queue.consumer.lease_groups(2, trained_version=9, max_staleness=1)
    assert report.groups == []
    assert report.num_dropped_stale == 4
    assert queue.admin.progress().num_dropped == 4
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == [4, 5, 6, 7]


def test_a_group_is_as_old_as_its_oldest_token(queue: TrajectoryQueue) -> None:
    """Weights may change inside an answer, and between the answers of a group."""
    for index in range(2):
        group = make_group(f"run/{index}", answer_tokens=4, version=9)
        versions = group[index].policy_version.copy()
        versions[-2] = 3
        group[index] = dataclasses.replace(group[index], policy_version=versions)
        queue.producer.put([(index, group)])
    (taken,) = queue.consumer.lease_groups(1, trained_version=9, max_staleness=6).groups
    assert [(t.oldest_version, t.policy_version.max()) for t in taken] == [(3, 9), (9, 9)]
    report = queue.consumer.lease_groups(1, trained_version=9, max_staleness=5)
    assert (report.groups, report.num_dropped_stale) == ([], 1)


def test_stale_groups_are_dropped_from_leases_of_names(queue: TrajectoryQueue) -> None:
    queue.producer.put([(i, make_group(f"run/{i}", version=1 + 5 * i)) for i in range(2)])
    leased = queue.consumer.lease(2, trained_version=7, max_staleness=2)
    assert (leased.group_ids, leased.num_dropped_stale) == (["run/1"], 1)


def test_names_are_leased_and_read_elsewhere(queue: TrajectoryQueue, place: Place) -> None:
    queue.producer.put([(i, make_group(f"run/{i}", seed=i, answer_tokens=2 + 4 * i)) for i in range(3)])
    leased = queue.consumer.lease(2, trained_version=1, max_staleness=5)
    assert leased.group_ids == ["run/0", "run/1"]
    assert leased.num_bytes[0] < leased.num_bytes[1]
    reader = place.open()
    groups = reader.consumer.read(["run/1", "run/0"]).groups
    assert [groups[name][0].group_id for name in leased.group_ids] == leased.group_ids
    assert len(groups["run/1"][0].tokens) == 9
    assert lease(reader) == ["run/2"]
    with pytest.raises(QueueError, match=r"run/9 is not leased in .*(state\.db|schema=).*same queue"):
        reader.consumer.read(["run/9"])
    train(queue, leased.group_ids)
    assert queue.admin.progress().num_trained == 2


def test_recovery_agrees_with_the_checkpoint(queue: TrajectoryQueue, place: Place) -> None:
    put(queue, 0, 1, 2, 3)
    assert lease(queue, 3) == ["run/0", "run/1", "run/2"]
    train(queue, ["run/0"], 1)
    train(queue, ["run/1"], 2)
    restarted = place.open()
    restarted.consumer.recover(["run/0", "run/77"], completed_steps=1, prompt_cursor=9)
    assert lease(restarted) == ["run/1", "run/2", "run/3"]
    assert put(restarted, 77) == 0
    assert restarted.admin.progress().completed_steps == 1
    assert restarted.consumer.prompt_cursor() == 9


def test_prompts_dispatched_after_the_checkpoint_are_not_dispatched_again(queue: TrajectoryQueue) -> None:
    assert queue.producer.claim_prompts("w", 4, PACE, served_step=0) == [0, 1, 2, 3]
    put(queue, 0, 1, 2, 3)
    queue.consumer.recover([], completed_steps=0, prompt_cursor=1)
    assert queue.consumer.prompt_cursor() == 4
    train(queue, lease(queue))
    assert queue.producer.claim_prompts("w", 2, PACE, served_step=1) == [4, 5]


def test_a_learner_that_was_taken_for_dead_is_refused(queue: TrajectoryQueue, place: Place) -> None:
    put(queue, 0, 1, 2)
    queue.consumer.recover([], completed_steps=0, prompt_cursor=0)
    assert lease(queue, 1) == ["run/0"]
    reader = place.open()  # another host of the same learner
    other = place.open()
    other.consumer.recover([], completed_steps=0, prompt_cursor=0)
    for use in (
        lambda: lease(queue),
        lambda: train(queue, ["run/0"]),
        lambda: train(queue, []),
        lambda: queue.consumer.acknowledge(["run/0"]),
        lambda: queue.consumer.bury("run/0", ""),
        lambda: queue.consumer.reject("run/0", ""),
        queue.consumer.prompt_cursor,
        queue.consumer.finish,
    ):
        with pytest.raises(LeaseLostError, match="another learner has taken over"):
            use()
    assert lease(other) == ["run/0", "run/1", "run/2"]
    assert list(reader.consumer.read(["run/1"]).groups) == ["run/1"]
    other.consumer.finish()
    assert put(queue, 3) == 1  # a worker's connection is not a learner's
    assert queue.admin.progress().finished


def test_who_takes_over_is_in_charge_before_it_has_chosen_a_checkpoint(queue: TrajectoryQueue, place: Place) -> None:
    put(queue, 0, 1)
    queue.consumer.recover([], completed_steps=0, prompt_cursor=0)
    lease(queue)
    train(queue, ["run/0", "run/1"])
    other = place.open()
    other.consumer.take_over()
    with pytest.raises(LeaseLostError, match="another learner has taken over"):
        queue.consumer.acknowledge(["run/0"])
    other.consumer.recover(["run/1"], completed_steps=1, prompt_cursor=2)
    assert lease(other) == ["run/0"]
    third = place.open()
    third.consumer.take_over()
    with pytest.raises(LeaseLostError, match="another learner has taken over"):
        other.consumer.recover(["run/1"], completed_steps=1, prompt_cursor=2)
