"""The rollout worker: queue, registry, tokenizer and HTTP client are real, the replicas behind the session are not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.runtime.waits import Waits, WaitTimeoutError
from rewards.contracts.task import Problem, RewardRequest, RewardResult, Split
from serving_bridge.queue.staleness import Pace
from serving_bridge.routing.dispatch import NoReplicaError
from serving_bridge.routing.registry import ReplicaRegistry
from serving_bridge.text.tokenizer import Tokenizer
from tests.support.rollout_bench import Bench, error_of, two
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import EOS, VOCAB, AdditionTask, FakeReplica, choice, reply


def test_trajectories_carry_exactly_what_was_sampled(tmp_path: Path, tokenizer: Tokenizer) -> None:
    script = [two(9, 10, 1, logprobs=[-0.5, -0.25, -0.125], spans=[("1", 0, 2), ("2", 2, 3)])] * 2
    bench = Bench(tmp_path, tokenizer, FakeReplica(script=script))
    bench.ready(2)
    bench.run(lambda: bench.num_ready() == 2)
    (group, _) = bench.queue.consumer.lease_groups(2, trained_version=2, max_staleness=1).groups
    first = group[0]
    assert (first.trajectory_id, first.group_id, first.group_size) == ("run/0/0", "run/0", 2)
    prompt = bench.worker.encoder.encode(bench.worker.task.problem("train", 0))
    assert prompt is not None
    assert first.tokens.tolist() == [*prompt, 9, 10, 1]
    assert first.loss_mask.tolist() == [False] * len(prompt) + [True] * 3
    assert first.behavior_logprobs[len(prompt) :].tolist() == [-0.5, -0.25, -0.125]
    assert first.policy_version.tolist() == [-1] * len(prompt) + [1, 1, 2]
    assert (first.oldest_version, first.tokenizer) == (1, tokenizer.fingerprint)
    assert not first.turn.any()
    assert bench.total("mixed_version_answers") == 4
    assert bench.total("tokens") == 12


class Told:
    """Takes spans; keeps (group, name, attributes)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, dict[str, Any]]] = []
        self._current: ContextVar[str] = ContextVar("group")

    @contextmanager
    def group(self, group_id: str) -> Iterator[None]:
        self._current.set(group_id)
        yield
        self.spans.append((group_id, "group", {}))

    @contextmanager
    def span(self, name: str, **attributes: Any) -> Iterator[None]:
        yield
        self.spans.append((self._current.get(), name, attributes))

    def past(self, group_ids: Any, name: str, began_s: float, ended_s: float, **attributes: Any) -> None:
        assert 0 <= ended_s - began_s < 60
        self.spans += [(group_id, name, {}) for group_id in group_ids]


def test_each_part_of_a_groups_way_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bench = Bench(tmp_path, tokenizer, FakeReplica(script=[two(9, finish_reason="abort"), two(9, 1)]))
    told = bench.worker.spans = Told()
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    names = [name for group_id, name, _ in told.spans if group_id == "run/1"]
    assert names == ["request", "score", "group", "put"]
    about = [attributes for group_id, name, attributes in told.spans if (group_id, name) == ("run/0", "request")]
    assert about[0] == {"replica": "r0", "answers": 2, "attempt": 1}


def test_lost_and_garbled_answers_are_asked_for_again_and_never_become_samples(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    def lost(_: Any) -> Any:
        raise ConnectionResetError("on purpose")

    script = [two(9, finish_reason="abort"), lost, two(9, 1, spans=[("1", 0, 1)]), two(VOCAB, 1), two(9, 1)]
    bench = Bench(tmp_path, tokenizer, FakeReplica(script=script[1:]), failures_to_avoid=9)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    assert bench.num_ready() == 2
    assert bench.total("retries") == 3
    assert bench.total("groups") == 2
    totals = bench.registry.request_totals("r0")
    assert totals == (2, 3)


def test_an_aborted_answer_is_completed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bench = Bench(tmp_path, tokenizer, FakeReplica(script=[two(9, 10, finish_reason="abort")]))
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    groups = bench.queue.consumer.lease_groups(2, trained_version=1, max_staleness=1).groups
    assert bench.total("resumed") == 2
    assert any(t.tokens[t.loss_mask][:2].tolist() == [9, 10] for group in groups for t in group)
    assert {t.finish_reason for group in groups for t in group} <= {"stop", "length"}


def test_a_request_that_can_not_work_is_given_up_and_its_place_refunded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bench = Bench(tmp_path, tokenizer, FakeReplica(script=[lambda _: (400, b"on purpose")]))
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    progress = bench.queue.admin.progress()
    assert (progress.num_ready, progress.num_claimed, progress.next_prompt) == (2, 0, 3)
    assert bench.total("failed_groups") == 1


def test_dialogs_with_spares_end_as_whole_groups(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bench = Bench(tmp_path, tokenizer, FakeReplica(stop=0.6), FakeReplica(seed=1, stop=0.6), turns=3, spare_samples=1)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    groups = bench.queue.consumer.lease_groups(2, trained_version=1, max_staleness=1).groups
    assert [len(group) for group in groups] == [2, 2]
    assert max(t.turn.max() for group in groups for t in group) > 0
    for trajectory in (t for group in groups for t in group):
        starts = np.flatnonzero(np.diff(trajectory.turn)) + 1
        assert not trajectory.loss_mask[starts].any()
        assert trajectory.loss_mask[starts - 1].all()
    assert bench.total("environment_turns") > 0
    line = next(r for r in bench.records if r["event"] == "interval")
    assert set(line["replicas"]) == {"r0", "r1"}
    assert line["replicas"]["r0"]["limit"] == 32


def test_a_spare_stands_in_for_an_episode_past_its_deadline(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def never(_: Any) -> Any:
        await asyncio.sleep(60)

    pace = Pace(max_staleness=0, groups_per_step=1, total_steps=1)
    bench = Bench(tmp_path, tokenizer, FakeReplica(script=[never]), pace=pace, spare_samples=1, episode_timeout_s=0.3)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 1)
    assert (bench.total("deadline_hits"), bench.total("spares_used"), bench.total("groups")) == (1, 1, 1)


def test_answers_of_a_version_that_the_registry_does_not_name_yet_are_taken(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """A server names a version only once it is proven; what the controller wrote last may be older."""
    bench = Bench(tmp_path, tokenizer, FakeReplica(version=5))
    bench.ready(4)
    bench.run(lambda: bench.num_ready() == 2)
    assert bench.num_ready() == 2


def test_without_a_replica_the_worker_gives_up_in_time_and_says_why(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bench = Bench(tmp_path, tokenizer, max_wait_s=0.3)
    bench.registry.report("r", url="http://r", state="stale", version=-1, step=-1)
    with error_of(bench, NoReplicaError, r"rollout\.max_wait_s = 0\.3 s\): known replicas: \['r is stale'\]"):
        pass


def test_a_gate_that_stays_closed_ends_the_worker_in_time(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bench = Bench(tmp_path, tokenizer, FakeReplica(), max_wait_s=0.5)
    bench.ready()
    with error_of(bench, WaitTimeoutError, r"for the staleness gate to open from learner and gave up"):
        assert bench.num_ready() == 2


def test_a_silent_controller_s_replica_is_not_ready(tmp_path: Path) -> None:
    now = [100.0]
    registry = ReplicaRegistry(tmp_path, max_silence_s=30, clock=lambda: now[0])
    registry.report("r", url="http://r", state="healthy", version=1, step=0)
    assert [row.name for row in registry.ready()] == ["r"]
    now[0] += 31
    assert registry.ready() == []
    registry.remove("r")
    assert registry.replicas() == []


def test_a_bug_ends_the_worker_and_its_claims_are_taken_up_again(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def bug(_: Any) -> Any:
        raise ZeroDivisionError("on purpose")

    bench = Bench(tmp_path, tokenizer, FakeReplica(script=[bug] * 9))
    bench.ready()
    with error_of(bench, ZeroDivisionError, "on purpose"):
        assert bench.queue.producer.resume_claims("w") == [0, 1]


def test_verifiers_that_block_do_not_hold_up_the_loop_and_one_that_hangs_is_given_up(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    class Slow(AdditionTask):
        def score(self, request: RewardRequest) -> RewardResult:
            time.sleep(0.6 if request.problem.index == 0 else 0.0)
            return super().score(request)

    replica = FakeReplica()
    bench = Bench(tmp_path, tokenizer, replica, task=Slow(), reward_timeout_s=0.2, reward_threads=4)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    assert bench.queue.admin.progress().next_prompt == 3
    assert (bench.total("unjudged_groups"), bench.total("failed_verdicts"), bench.total("failed_groups")) == (1, 2, 0)
    told = [r["failed_verdict_example"] for r in bench.records if "failed_verdict_example" in r]
    assert len(told) == 1
    assert "timeout: no verdict after 0.2 s (rollout.reward_timeout_s)" in told[0]


def test_groups_are_sampled_while_verdicts_of_earlier_ones_are_missing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """With one place: a group being sampled, and three that wait for verdicts, no more."""
    may_judge = threading.Event()

    class Late(AdditionTask):
        def score(self, request: RewardRequest) -> RewardResult:
            assert may_judge.wait(20)
            return super().score(request)

    replica = FakeReplica()
    pace = Pace(max_staleness=0, groups_per_step=9, total_steps=1)
    bench = Bench(tmp_path, tokenizer, replica, pace=pace, task=Late(), concurrent_groups=1, reward_threads=32)
    bench.ready()
    seen: list[int] = []

    def all_there() -> bool:
        if not may_judge.is_set() and len(replica.bodies) >= 4:
            seen.append(len(replica.bodies))
            if len(seen) == 10:  # another request had the time to come
                may_judge.set()
        return bench.num_ready() == 9

    bench.run(all_there)
    assert set(seen) == {4}
    assert bench.total("groups") == 9


def test_a_prompt_that_is_too_long_is_skipped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Long(AdditionTask):
        def problem(self, split: Split, index: int) -> Problem:
            found = super().problem(split, index)
            return Problem(index, found.question * (9 if index == 1 else 1), found.answer, {})

    bench = Bench(tmp_path, tokenizer, FakeReplica(), task=Long())
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    assert (bench.queue.admin.progress().next_prompt, bench.total("skipped_prompts")) == (3, 1)


def test_waits_are_seen_by_name(tmp_path: Path, tokenizer: Tokenizer) -> None:
    waits, seen = Waits(), set()
    bench = Bench(tmp_path, tokenizer, max_wait_s=0.5)
    bench.worker.waits = waits

    async def story() -> None:
        running = asyncio.create_task(bench.worker.run())
        while not running.done():
            seen.update((wait.what, wait.on) for wait in waits.current())
            await asyncio.sleep(0.01)
        with pytest.raises(NoReplicaError):
            await running

    asyncio.run(story())
    assert ("a ready vLLM replica", "fleet") in seen
    assert waits.current() == []


def test_each_answer_of_a_group_is_put_with_its_own_reward(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def one_right(right: int, index: int) -> Any:
        answer = [*tokenizer.encode(AdditionTask().problem("train", index).answer), EOS]
        return lambda _: reply(*(choice(answer if i == right else [9, EOS], index=i) for i in range(2)))

    replica = FakeReplica(script=[one_right(0, 0), one_right(1, 1)])
    bench = Bench(tmp_path, tokenizer, replica, concurrent_groups=1)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    groups = bench.queue.consumer.lease_groups(2, trained_version=1, max_staleness=1).groups
    assert [[float(t.rewards.sum()) for t in group] for group in groups] == [[1.0, 0.0], [0.0, 1.0]]
    assert [[int(t.tokens[t.loss_mask][0]) == 9 for t in group] for group in groups] == [[False, True], [True, False]]


def test_the_replica_that_is_furthest_behind_opens_the_gate(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, tokenizer, FakeReplica(), FakeReplica())
    for name, step in (("r0", 4), ("r1", 3)):
        bench.registry.report(name, url=f"http://{name}", state="healthy", version=step, step=step)
    served: set[int] = set()
    claim = bench.queue.producer.claim_prompts

    def noted(*arguments: Any, served_step: int) -> list[int]:
        served.add(served_step)
        return claim(*arguments, served_step=served_step)

    monkeypatch.setattr(bench.queue.producer, "claim_prompts", noted)
    bench.run(lambda: bench.num_ready() == 2)
    assert served == {3}


def test_a_worker_sleeps_while_nothing_changes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    looks = [0]

    def should_stop() -> bool:
        looks[0] += 1
        return False

    async def slow(body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.5)
        return two(9, 1)(body)

    bench = Bench(tmp_path, tokenizer, FakeReplica(script=[two(9, 1), slow]), should_stop=should_stop)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    assert looks[0] < 200, "one every 10 ms, and one whenever a group has ended"
