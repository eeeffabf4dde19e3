"""The queue's contract on both engines: effect once, leases, staleness, recovery, limits, backpressure."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from learner_jax.contracts.weights import ContractError, RecordLimits
from serving_bridge.database.database import open_database
from serving_bridge.queue.bounds import QueueBounds, QueueError, QueueFullError
from serving_bridge.queue.consumer import LeaseLostError
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace, dispatch_room, is_stale
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


def test_higher_priority_comes_first_then_age(queue: TrajectoryQueue) -> None:
    put(queue, 0, 1)
    queue.producer.put([(i, make_group(f"run/{i}")) for i in (2, 3)], priority=5)
    queue.producer.put([(4, make_group("run/4"))], priority=-1)
    assert lease(queue) == ["run/2", "run/3", "run/0", "run/1", "run/4"]


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


def test_stale_groups_are_dropped_counted_and_their_place_refunded(queue: TrajectoryQueue) -> None:
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == [0, 1, 2, 3]
    put(queue, 0, 1, 2, 3, version=1)
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == []
    report = queue.consumer.lease_groups(2, trained_version=9, max_staleness=1)
    assert report.groups == []
    assert report.num_dropped_stale == 4
    assert queue.admin.progress().num_dropped == 4
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == [4, 5, 6, 7]


def test_stale_groups_are_dropped_from_leases_of_names(queue: TrajectoryQueue) -> None:
    queue.producer.put([(i, make_group(f"run/{i}", version=1 + 5 * i)) for i in range(2)])
    leased = queue.consumer.lease(2, trained_version=7, max_staleness=2)
    assert (leased.group_ids, leased.num_dropped_stale) == (["run/1"], 1)


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


def test_a_group_that_comes_twice_at_once_is_taken_once(queue: TrajectoryQueue) -> None:
    first, second = make_group("run/0", seed=1), make_group("run/0", seed=2)
    assert queue.producer.put([(0, first), (1, make_group("run/1")), (0, second)]) == 2
    groups = queue.consumer.lease_groups(5, trained_version=1, max_staleness=5).groups
    assert [group[0].group_id for group in groups] == ["run/0", "run/1"]
    assert groups[0][0].tokens.tolist() == first[0].tokens.tolist()


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


# What is taken in.


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


# Nothing grows for ever.


def _run_through(queue: TrajectoryQueue, steps: range) -> None:
    for step in steps:
        claimed = queue.producer.claim_prompts("w", 10, Pace(0, 4, 1000), served_step=step)
        assert len(claimed) == 4
        put(queue, *claimed[:3])
        queue.producer.release_claim(claimed[3])
        trained = lease(queue, 2, version=1)
        train(queue, trained, step + 1)
        queue.consumer.acknowledge(trained)
        queue.consumer.lease_groups(1, trained_version=99, max_staleness=1)  # drops the third


def test_rows_of_ended_prompts_go_and_the_watermark_stands_for_them(queue: TrajectoryQueue, place: Place) -> None:
    _run_through(queue, range(20))
    assert execute(queue, "SELECT count(*) FROM groups")[0][0] <= 2
    progress = queue.admin.progress()
    assert (progress.num_acknowledged, progress.num_dropped) == (40, 20)
    assert queue.admin.overview().watermark >= 76
    worker = place.open()  # one that was thought dead
    assert put(worker, *range(76)) == 0
    restarted = place.open()
    restarted.consumer.recover(
        [f"run/{i}" for i in (0, 1, 72, 73)], completed_steps=18, prompt_cursor=60
    )  # an older checkpoint
    assert put(worker, 0, 1, 40, 72) == 0
    assert lease(restarted) == []
    progress = restarted.admin.progress()
    assert (progress.num_acknowledged, progress.num_dropped) == (40, 20)
    restarted.consumer.acknowledge([])
    progress = restarted.admin.progress()
    assert (progress.num_acknowledged, progress.num_dropped) == (40, 20)


def test_the_watermark_waits_for_claims_and_groups_on_their_way(queue: TrajectoryQueue, clock: Clock) -> None:
    assert queue.producer.claim_prompts("slow", 1, PACE, served_step=0) == [0]
    assert queue.producer.claim_prompts("w", 9, PACE, served_step=0) == [1, 2, 3]
    put(queue, 1, 2, 3)
    trained = lease(queue, 2)
    train(queue, trained)
    queue.consumer.acknowledge(trained)
    assert queue.admin.overview().watermark == 0
    assert put(queue, 1, 2) == 0
    assert put(queue, 0) == 1
    queue.consumer.acknowledge([])
    assert queue.admin.overview().watermark == 0
    train(queue, lease(queue, 2), 2)
    queue.consumer.acknowledge(["run/0"])
    assert queue.admin.overview().watermark == 3  # trained on, and not yet in a checkpoint
    queue.consumer.acknowledge(["run/3"])
    assert queue.admin.overview().watermark == 4


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


# What is asked many times a second.


def test_asking_in_vain_writes_nothing(place: Place) -> None:
    place.open()
    counted = CountedDatabase(open_database(place.url))
    queue = TrajectoryQueue(database=counted, clock=place.clock)
    assert len(queue.producer.claim_prompts("w", 10, PACE, served_step=0)) == 4
    before = counted.num_writes
    assert queue.producer.claim_prompts("w", 10, PACE, served_step=0) == []
    assert lease(queue) == []
    queue.admin.progress()
    queue.consumer.prompt_cursor()
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


# The gate by itself.


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_gate_bounds_staleness_of_every_in_order_group(max_staleness: int, lag: int) -> None:
    """Simulates a fleet that serves `lag` steps behind: consumed in order, no group is ever too stale."""
    pace = Pace(max_staleness=max_staleness, groups_per_step=3, total_steps=40)
    waiting: list[int] = []
    completed = 0
    worst = 0
    for tick in range(400):
        served = max(0, completed - (lag if tick % (lag + 2) else 0))
        room = dispatch_room(pace, completed_steps=completed, served_step=served, outstanding=len(waiting), running=0)
        waiting += [served] * room
        if len(waiting) >= pace.groups_per_step and completed < pace.total_steps:
            batch, waiting = waiting[: pace.groups_per_step], waiting[pace.groups_per_step :]
            worst = max(worst, completed - min(batch))
            assert not any(
                is_stale(trained_version=completed, oldest_version=v, max_staleness=max_staleness) for v in batch
            )
            completed += 1
    assert completed == pace.total_steps
    assert waiting == []
    if max_staleness and lag:
        assert worst > 0


def test_gate_after_a_learner_restart_does_not_trust_a_fleet_that_is_ahead() -> None:
    pace = Pace(max_staleness=0, groups_per_step=4, total_steps=100)
    assert dispatch_room(pace, completed_steps=5, served_step=9, outstanding=0, running=0) == 4
