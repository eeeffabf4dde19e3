"""Groups that wait for rewards, on both engines: each reward joins once, and a group is released once, whole."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from learner_jax.contracts import ContractError, Trajectory
from serving_bridge.delayed_rewards import Arrival, Outcome
from serving_bridge.queue import Delay, Pace, Settled, TrajectoryQueue
from tests.support.properties import examples
from tests.support.queue_engines import PACE, Clock, CountedDatabase, Place, clock, execute, lease, place, queue, train
from tests.support.trajectories import make_group, pending

__all__ = ["clock", "place", "queue"]  # fixtures

_WINDOW_S = 600.0
_DROP = Delay(_WINDOW_S)


def hold(queue: TrajectoryQueue, *indices: int, delay: Delay = _DROP, size: int = 2, version: int = 1) -> int:
    groups = [(i, pending(make_group(f"run/{i}", seed=i, size=size, version=version))) for i in indices]
    return queue.producer.put(groups, delays=dict.fromkeys(indices, delay))


def bring(queue: TrajectoryQueue, *rewards: tuple[str, float], name: str = "reward") -> list[Outcome]:
    return queue.rewards.bring([Arrival(subject, name, value) for subject, value in rewards])


def leased(queue: TrajectoryQueue) -> list[list[Trajectory]]:
    return list(queue.consumer.lease_groups(10, trained_version=1, max_staleness=5).groups)


def test_a_group_is_released_whole_with_its_rewards_and_nothing_else_of_it_differs(queue: TrajectoryQueue) -> None:
    hold(queue, 0)
    assert leased(queue) == []
    assert bring(queue, ("run/0/1", 0.25)) == ["joined"]
    assert leased(queue) == []
    arrival = Arrival("run/0/0", "rated", 1.0, {"stars": 5.0})
    assert queue.rewards.bring([arrival]) == ["joined"]
    ((first, second),) = leased(queue)
    assert (first.total_reward, first.verdict, first.reward_parts) == (1.0, "pass", {"stars": 5.0})
    assert (second.total_reward, second.verdict, second.reward_parts) == (0.25, "fail", {})
    assert first.rewards.tolist() == [0, 0, 0, 0, 1.0]
    for given, found in zip(pending(make_group("run/0")), (first, second), strict=True):
        for field in dataclasses.fields(Trajectory):
            if field.name in ("rewards", "verdict", "reward_parts"):
                continue
            same = np.array_equal(getattr(given, field.name), getattr(found, field.name))
            assert same, f"{field.name} came with the reward"


def test_what_comes_again_or_too_late_or_for_nobody_is_counted_and_kept(queue: TrajectoryQueue, clock: Clock) -> None:
    hold(queue, 0, 1)
    assert bring(queue, ("run/0/0", 1.0), ("run/0/0", 1.0), ("run/0/0", 0.5)) == ["joined", "duplicate", "conflict"]
    assert bring(queue, ("run/0/0", 1.0)) == ["duplicate"]
    assert bring(queue, ("run/0/0", 0.5)) == ["conflict"]
    assert bring(queue, ("run/0/0", 0.0), name="another") == ["extra"]
    assert bring(queue, ("elsewhere/0/0", 1.0), ("elsewhere/0/0", 1.0)) == ["unknown", "duplicate"]
    clock.now_s += _WINDOW_S + 1
    assert bring(queue, ("run/0/1", 1.0), ("run/1/0", 1.0)) == ["late", "late"]
    found = queue.rewards.overview()
    assert found.counts == {"joined": 1, "duplicate": 3, "conflict": 2, "extra": 1, "late": 2, "unknown": 1}
    assert {(one.subject, one.reward_id, one.outcome) for one in found.kept} == {
        ("run/0/0", "reward", "conflict"),
        ("run/0/0", "another", "extra"),
        ("elsewhere/0/0", "reward", "unknown"),
        ("run/0/1", "reward", "late"),
        ("run/1/0", "reward", "late"),
    }


def test_a_reward_is_in_time_up_to_the_end_of_the_window(queue: TrajectoryQueue, clock: Clock) -> None:
    hold(queue, 0)
    clock.now_s += _WINDOW_S
    assert bring(queue, ("run/0/0", 1.0)) == ["joined"]
    assert queue.rewards.settle() == Settled()
    clock.now_s += 0.01
    assert bring(queue, ("run/0/1", 1.0)) == ["late"]


def test_a_reward_that_comes_before_its_group_joins_it(queue: TrajectoryQueue) -> None:
    assert bring(queue, ("run/0/0", 1.0), ("run/0/1", 0.0)) == ["unknown", "unknown"]
    assert bring(queue, ("run/0/0", 0.5), name="second") == ["unknown"]
    hold(queue, 0)
    ((first, second),) = leased(queue)
    assert (first.total_reward, second.total_reward) == (1.0, 0.0)
    found = queue.rewards.overview()
    assert (found.counts["joined"], found.counts["unknown"], found.counts["extra"]) == (2, 0, 1)
    assert bring(queue, ("run/0/0", 1.0)) == ["duplicate"]


def test_a_reward_stored_beside_its_group_is_found_by_the_next_settling(queue: TrajectoryQueue) -> None:
    hold(queue, 0)
    bring(queue, ("run/0/0", 1.0))
    # As two transactions leave it of which neither saw the other.
    execute(
        queue,
        "INSERT INTO kept_rewards (subject, reward_id, value, parts, outcome, received_s) "
        "VALUES ('run/0/1', 'reward', 0.5, '{}', 'unknown', 1000)",
    )
    assert queue.rewards.settle() == Settled(released=("run/0",))
    assert [trajectory.total_reward for trajectory in leased(queue)[0]] == [1.0, 0.5]


def test_after_the_window_answers_without_reward_are_left_out(queue: TrajectoryQueue, clock: Clock) -> None:
    hold(queue, 0, 1, size=3)
    bring(queue, ("run/0/0", 1.0), ("run/0/2", 0.0), ("run/1/0", 1.0))
    clock.now_s += _WINDOW_S + 1
    assert queue.rewards.settle() == Settled(released=("run/0",), dropped=("run/1",))
    ((first, second, third),) = leased(queue)
    assert [first.verdict, second.verdict, third.verdict] == ["pass", "timeout", "fail"]
    assert second.verdict_reason == "no reward came within 600 s (task.delayed.window_s)"
    assert (queue.admin.progress().num_dropped, hold(queue, 1)) == (1, 0)
    assert bring(queue, ("run/0/1", 1.0)) == ["late"]
    assert queue.rewards.settle() == Settled()


def test_after_the_window_answers_may_get_a_score(queue: TrajectoryQueue, clock: Clock) -> None:
    hold(queue, 0, delay=Delay(_WINDOW_S, -0.5))
    bring(queue, ("run/0/1", 1.0))
    clock.now_s += _WINDOW_S + 1
    assert queue.rewards.settle() == Settled(released=("run/0",))
    ((first, second),) = leased(queue)
    assert (first.total_reward, first.verdict, first.reward_parts) == (-0.5, "fail", {"timed_out": 1.0})
    assert (second.total_reward, second.reward_parts) == (1.0, {})


def test_waiting_groups_count_for_the_gate_and_hold_up_the_watermark(queue: TrajectoryQueue) -> None:
    pace = Pace(max_staleness=0, groups_per_step=2, total_steps=9)
    assert queue.producer.claim_prompts("w", 9, pace, served_step=0) == [0, 1]
    hold(queue, 0, 1)
    assert queue.producer.claim_prompts("w", 9, pace, served_step=0) == []
    queue.consumer.recover([], completed_steps=0, prompt_cursor=0)
    bring(queue, ("run/1/0", 1.0), ("run/1/1", 0.0))
    train(queue, lease(queue))
    queue.consumer.acknowledge(["run/1"])
    assert queue.admin.overview().watermark == 0
    assert queue.rewards.overview().num_waiting == 1


def test_a_group_that_is_too_old_is_dropped_without_its_rewards(queue: TrajectoryQueue) -> None:
    hold(queue, 0, version=1)
    hold(queue, 1, version=3)
    report = queue.consumer.lease_groups(9, trained_version=4, max_staleness=2)
    assert (report.groups, report.num_dropped_stale) == ([], 1)
    assert bring(queue, ("run/0/0", 1.0), ("run/1/0", 1.0)) == ["late", "joined"]
    assert [group.group_id for group in queue.rewards.overview().waiting] == ["run/1"]
    assert hold(queue, 0) == 0


def test_staleness_applies_when_a_group_is_released(queue: TrajectoryQueue) -> None:
    hold(queue, 0, version=1)
    bring(queue, ("run/0/0", 1.0), ("run/0/1", 1.0))
    report = queue.consumer.lease_groups(9, trained_version=9, max_staleness=2)
    assert (report.groups, report.num_dropped_stale) == ([], 1)


def test_a_group_put_again_has_no_effect(queue: TrajectoryQueue) -> None:
    assert (hold(queue, 0), hold(queue, 0)) == (1, 0)
    bring(queue, ("run/0/0", 1.0), ("run/0/1", 0.0))
    assert hold(queue, 0) == 0
    train(queue, lease(queue))
    assert hold(queue, 0) == 0
    assert (queue.rewards.overview().num_waiting, lease(queue)) == (0, [])


def test_groups_that_wait_and_groups_that_do_not_come_in_one_put(queue: TrajectoryQueue) -> None:
    queue.producer.claim_prompts("w", 4, PACE, served_step=0)
    groups = [(0, make_group("run/0")), (1, pending(make_group("run/1"))), (2, make_group("run/2"))]
    assert queue.producer.put(groups, delays={1: _DROP}, worker="w") == 3
    assert lease(queue) == ["run/0", "run/2"]
    assert queue.admin.progress().num_claimed == 1


def test_only_the_answers_without_a_verdict_are_waited_for(queue: TrajectoryQueue) -> None:
    judged, waits = make_group("run/0", rewards=[1.0, 0.0])
    queue.producer.put([(0, [judged, pending([waits])[0]])], delays={0: _DROP})
    assert bring(queue, ("run/0/0", 0.0)) == ["unknown"]
    assert bring(queue, ("run/0/1", 0.5)) == ["joined"]
    assert [trajectory.total_reward for trajectory in leased(queue)[0]] == [1.0, 0.5]


def test_a_group_may_wait_only_where_it_is_said_for_how_long(queue: TrajectoryQueue) -> None:
    with pytest.raises(ContractError, match=r"group run/0 waits for rewards, and nothing says for how long"):
        queue.producer.put([(0, pending(make_group("run/0")))])


def test_a_worker_must_hold_the_claim_of_a_group_that_waits(queue: TrajectoryQueue) -> None:
    with pytest.raises(ContractError, match="nobody has claimed"):
        queue.producer.put([(0, pending(make_group("run/0")))], delays={0: _DROP}, worker="w")
    assert queue.rewards.overview().num_waiting == 0


def test_two_that_bring_the_last_rewards_at_the_same_moment_release_a_group_once(place: Place) -> None:
    """The first one is held up before its commit: the second must not overlook what that has not committed."""
    first, second = place.open(), place.open()
    hold(first, 0)
    inside, go_on = threading.Event(), threading.Event()

    def before(number: int) -> None:
        inside.set()
        assert go_on.wait(20)

    slow = TrajectoryQueue(database=CountedDatabase(first.database, before), clock=place.clock)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(bring, slow, ("run/0/0", 1.0))
        assert inside.wait(20)
        other = pool.submit(bring, second, ("run/0/1", 0.5))
        time.sleep(0.3)  # as long as the second would need to pass by
        go_on.set()
        assert (one.result(), other.result()) == (["joined"], ["joined"])
    assert [[trajectory.total_reward for trajectory in group] for group in leased(second)] == [[1.0, 0.5]]
    assert second.rewards.overview().num_waiting == 0


def test_a_reward_that_meets_the_end_of_its_window_is_late_or_counts(place: Place) -> None:
    """By clocks that differ: one process closes the window while another one, still inside it, brings the reward."""
    behind = Clock()
    first, second = place.open(), place.open(clock=behind)
    hold(first, 0)
    place.clock.now_s += _WINDOW_S + 1
    inside, go_on = threading.Event(), threading.Event()

    def before(number: int) -> None:
        inside.set()
        assert go_on.wait(20)

    slow = TrajectoryQueue(database=CountedDatabase(first.database, before), clock=place.clock)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(slow.rewards.settle)
        assert inside.wait(20)
        other = pool.submit(bring, second, ("run/0/0", 1.0))
        time.sleep(0.3)
        go_on.set()
        assert (one.result(), other.result()) == (Settled(dropped=("run/0",)), ["late"])


class _Killed(Exception):
    """The process died before its transaction was committed."""


class Rewards(RuleBasedStateMachine):
    """Rewards and groups in any order, sent again, cut off and reopened; a plain model says what must come of it."""

    _GROUPS, _SIZE = 3, 2

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="weir-rewards-")
        self._clock = Clock()
        self._open()
        self._put: dict[int, float] = {}
        self._first: dict[str, float] = {}  # by trajectory: the reward that counts
        self._sent: dict[tuple[str, str], float] = {}  # what came first under each name
        self._early: dict[str, float] = {}
        self._decided: dict[str, list[float | None]] = {}
        self._acknowledged: list[str] = []

    def teardown(self) -> None:
        self._queue.close()
        self._folder.cleanup()

    def _open(self) -> None:
        self._queue = TrajectoryQueue(str(Path(self._folder.name) / "state.db"), clock=self._clock)
        self._queue.consumer.recover([], completed_steps=0, prompt_cursor=0)  # the watermark stays

    def _attempt(self, work: Any, *, killed: bool) -> Any:
        """Runs a call; a kill before the commit leaves nothing of it, and the call is made again by another life."""
        if killed:
            with pytest.raises(_Killed):
                _undone(self._queue, work)
            self._queue.close()
            self._open()
        return work()

    @rule(index=st.integers(0, _GROUPS - 1), killed=st.booleans())
    def put(self, index: int, killed: bool) -> None:
        new = self._attempt(lambda: hold(self._queue, index), killed=killed)
        assert new == int(index not in self._put)
        if index in self._put:
            return
        self._put[index] = self._clock.now_s
        for sample in range(self._SIZE):
            if (subject := f"run/{index}/{sample}") in self._early:
                self._first[subject] = self._early.pop(subject)
        self._decide(index)

    @rule(
        index=st.integers(0, _GROUPS - 1),
        sample=st.integers(0, _SIZE - 1),
        name=st.sampled_from(["a", "b"]),
        value=st.sampled_from([0.0, 0.5, 1.0]),
        killed=st.booleans(),
        times=st.integers(1, 3),
    )
    def bring(self, index: int, sample: int, name: str, value: float, killed: bool, times: int) -> None:
        subject = f"run/{index}/{sample}"
        for _ in range(times):
            found = self._attempt(lambda: bring(self._queue, (subject, value), name=name), killed=killed)
            assert found == [self._expected(index, subject, name, value)]

    def _expected(self, index: int, subject: str, name: str, value: float) -> str:
        if (subject, name) in self._sent:
            return "duplicate" if self._sent[subject, name] == value else "conflict"
        self._sent[subject, name] = value
        if index not in self._put:
            self._early.setdefault(subject, value)
            return "unknown"
        if subject in self._first:
            return "extra"
        if f"run/{index}" in self._decided or self._clock.now_s > self._put[index] + _WINDOW_S:
            return "late"
        self._first[subject] = value
        self._decide(index)
        return "joined"

    def _decide(self, index: int, *, closed: bool = False) -> None:
        rewards = [self._first.get(f"run/{index}/{sample}") for sample in range(self._SIZE)]
        if closed or None not in rewards:
            self._decided.setdefault(f"run/{index}", rewards)

    @rule(seconds=st.sampled_from([1.0, _WINDOW_S / 2, _WINDOW_S + 1]))
    def wait(self, seconds: float) -> None:
        self._clock.now_s += seconds

    @rule(killed=st.booleans())
    def settle(self, killed: bool) -> None:
        self._attempt(lambda: self._queue.rewards.settle(), killed=killed)
        for index, put_s in self._put.items():
            if self._clock.now_s > put_s + _WINDOW_S:
                self._decide(index, closed=True)

    @rule()
    def restart(self) -> None:
        self._queue.close()
        self._open()

    @precondition(lambda self: self._decided)
    @rule(trained=st.booleans())
    def learn(self, trained: bool) -> None:
        for group in leased(self._queue):
            name = group[0].group_id
            assert [trajectory.total_reward for trajectory in group] == self._decided[name]
            assert name not in self._acknowledged
            if trained:
                train(self._queue, [name])
                self._queue.consumer.acknowledge([name])
                self._acknowledged.append(name)

    @invariant()
    def every_reward_counts_once(self) -> None:
        assert self._queue.rewards.overview().counts["joined"] == len(self._first)
        waiting = {group.group_id for group in self._queue.rewards.overview().waiting}
        assert waiting == {f"run/{index}" for index in self._put} - set(self._decided)


def _undone(queue: TrajectoryQueue, work: Any) -> None:
    """Runs a call whose transaction is undone at its end."""
    write = queue.database.write

    def undone(inner: Any, **settings: Any) -> None:
        def killed(session: Any) -> None:
            inner(session)
            raise _Killed

        write(killed, **settings)

    queue.database.write = undone  # type: ignore[method-assign, assignment]
    try:
        work()
        raise _Killed  # it wrote nothing
    finally:
        queue.database.write = write  # type: ignore[method-assign]


TestRewards = Rewards.TestCase
TestRewards.settings = examples(0.25)
