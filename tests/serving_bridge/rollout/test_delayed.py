"""A worker whose task's rewards come later: its groups wait in the queue, and go on with what is brought."""

from __future__ import annotations

from pathlib import Path

from rewards.contracts import Problem, RewardRequest, RewardResult, Split
from serving_bridge.delayed_rewards import Arrival
from serving_bridge.queue import Delay
from serving_bridge.text.tokenizer import Tokenizer
from tests.support.rollout_bench import Bench
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import AdditionTask, FakeReplica


class LaterTask(AdditionTask):
    """Every second problem's reward comes later."""

    def problem(self, split: Split, index: int) -> Problem:
        found = super().problem(split, index)
        return Problem(index, found.question, found.answer, {}, source="later" if index % 2 else "now")

    def score(self, request: RewardRequest) -> RewardResult:
        if request.problem.source == "later":
            return RewardResult(None, {}, "pending")
        return super().score(request)


def _bench(folder: Path, tokenizer: Tokenizer, window_s: float) -> Bench:
    bench = Bench(folder, tokenizer, FakeReplica(), task=LaterTask(), max_failed_verdicts=0.001)
    bench.worker.rewards = bench.queue.rewards
    bench.worker.delays = {"later": Delay(window_s)}
    bench.ready()
    return bench


def test_groups_wait_for_their_rewards_and_others_do_not(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bench = _bench(tmp_path, tokenizer, 3600.0)
    bench.run(lambda: bench.num_ready() == 1 and bench.queue.rewards.overview().num_waiting == 1)
    assert bench.total("groups") == 2
    assert bench.total("failed_verdicts") == bench.total("unjudged_groups") == 0
    told = [record["sources"] for record in bench.records if record["event"] == "interval" and "sources" in record]
    now, later = ([found[label] for found in told if label in found] for label in ("now", "later"))
    assert [(one["groups"], one["episodes"], one["answers"]) for one in now] == [(1, 2, 2)]
    assert now[0]["reward_mean"] == now[0]["reward"] / 2
    assert [(one["episodes"], one["answers"], "reward_mean" in one) for one in later] == [(2, 0, False)]
    assert now[0]["tokens"] + later[0]["tokens"] == bench.total("tokens")
    (waiting,) = bench.queue.rewards.overview().waiting
    assert (waiting.group_id, waiting.num_missing) == ("run/1", 2)
    assert bench.queue.rewards.bring([Arrival("run/1/0", "a", 0.5), Arrival("run/1/1", "b", 1.0)]) == ["joined"] * 2
    groups = bench.queue.consumer.lease_groups(9, trained_version=1, max_staleness=1).groups
    assert {group[0].group_id for group in groups} == {"run/0", "run/1"}
    assert [t.total_reward for group in groups for t in group if group[0].group_id == "run/1"] == [0.5, 1.0]


def test_the_worker_ends_waits_whose_window_has_closed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bench = _bench(tmp_path, tokenizer, 0.05)
    bench.run(lambda: bench.queue.admin.progress().num_dropped == 1)
    assert bench.total("unrewarded_groups") == 1
    assert bench.queue.rewards.overview().num_waiting == 0
