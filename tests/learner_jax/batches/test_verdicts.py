"""Answers that nobody could judge: in no loss and no statistic, and too many stop the run."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from learner_jax.batches import Batch, BatchStats, rl_batch
from learner_jax.contracts.weights import Trajectory
from learner_jax.models import TokenStats
from learner_jax.settings.learner import LossSettings
from learner_jax.training.objective import StepScalars, reinforcement
from rewards.contracts.environment import EpisodeState, Outcome, Reply
from rewards.contracts.task import Problem, RewardRequest, RewardResult, failed, scored
from rewards.environments import create_environment
from rewards.settings.task import TaskSettings
from serving_bridge.evaluation.verdicts import FailedVerdictsError, VerdictWatch, unjudged
from serving_bridge.text.tokenizer import Tokenizer
from tests.support.rollout_bench import Bench
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import AdditionTask, FakeReplica
from tests.support.trajectories import failing, make_group

ESTIMATORS = ["grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"]
NAN = float("nan")


def judged_group(rewards: list[float], group_id: str = "run/0", **options: Any) -> list[Trajectory]:
    """Answers with these rewards; NaN stands for one whose verifier timed out."""
    known = [0.0 if math.isnan(r) else r for r in rewards]
    group = make_group(group_id, size=len(rewards), rewards=known, **options)
    return [failing(t) if math.isnan(r) else t for t, r in zip(group, rewards, strict=True)]


def loss_settings(estimator: str, **more: Any) -> LossSettings:
    tables: dict[str, Any] = {"advantage": {"estimator": estimator}, **more}
    if estimator in ("gae", "vtrace"):
        tables["value"] = {"model": "shared"}
    return LossSettings.model_validate(tables)


def batch_of(groups: list[list[Trajectory]], settings: LossSettings) -> tuple[Batch, BatchStats]:
    return rl_batch(groups, settings, sequence_length=16, trained_version=1)


# Advantages and losses


def oracle(estimator: str, groups: list[list[float]], tokens: list[list[int]]) -> list[list[float]]:
    """Advantages written from the papers over the answers that were judged; 0 for those that were not."""
    kept = [[r for r in group if not math.isnan(r)] for group in groups]
    lengths = [[n for r, n in zip(g, t, strict=True) if not math.isnan(r)] for g, t in zip(groups, tokens, strict=True)]
    whole = [len(k) == len(g) or len(k) >= 2 for k, g in zip(kept, groups, strict=True)]

    def centered(group: list[float]) -> list[float]:
        return [r - statistics.fmean(group) for r in group]

    def over_batch(values: list[list[float]]) -> list[list[float]]:
        every = [
            value
            for group, counts, use in zip(values, lengths, whole, strict=True)
            for value, count in zip(group, counts, strict=True)
            for _ in range(count)
            if use
        ]
        mean, deviation = statistics.fmean(every), statistics.pstdev(every)
        return [[(v - mean) / (deviation + 1e-4) for v in group] for group in values]

    match estimator:
        case "grpo":
            found = [[c / (statistics.pstdev(k) + 1e-4) for c in centered(k)] if k else [] for k in kept]
        case "dr_grpo":
            found = [centered(k) if k else [] for k in kept]
        case "rloo":
            found = [
                [k[i] - statistics.fmean(k[:i] + k[i + 1 :]) for i in range(len(k))] if len(k) > 1 else [0.0] * len(k)
                for k in kept
            ]
        case "reinforce_pp":
            found = over_batch(kept)
        case _:
            found = over_batch([centered(k) if k else [] for k in kept])
    placed = []
    for group, values, use in zip(groups, found, whole, strict=True):
        rest = iter(values)
        placed.append([0.0 if math.isnan(r) else next(rest) * use for r in group])
    return placed


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", range(6))
def test_advantages_are_those_of_the_judged_answers_alone(estimator: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, rewards, tokens = [], [], []
    for index in range(6):
        size, length = int(rng.integers(2, 7)), int(rng.integers(1, 6))
        drawn = [NAN if rng.random() < 0.4 else float(np.float32(rng.normal())) for _ in range(size)]
        rewards.append(drawn)
        tokens.append([length] * size)
        groups.append(judged_group(drawn, f"run/{index}", answer_tokens=length, seed=index))
    rewards.append([1.0, 0.0])  # so that there is always something to learn from
    tokens.append([2, 2])
    groups.append(judged_group([1.0, 0.0], "run/99"))
    batch, stats = batch_of(groups, loss_settings(estimator))
    mask = np.stack([np.pad(t.loss_mask, (0, 16 - len(t.tokens))) for group in groups for t in group])
    answers = np.concatenate([np.array(x) for x in oracle(estimator, rewards, tokens)])
    np.testing.assert_allclose(batch.advantages, np.where(mask, answers[:, None], 0.0), rtol=1e-5, atol=1e-6)
    flat = np.concatenate([np.array(x) for x in rewards])
    assert stats.failed_verdicts == np.isnan(flat).sum()
    assert stats.reward == pytest.approx(np.nanmean(flat))
    assert not np.asarray(batch.weights)[np.isnan(flat)].any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_right_answer_that_timed_out_is_no_wrong_one(estimator: str) -> None:
    """Of 1, 0, 0 and a timeout, GRPO takes the first for 1.414 and the others for -0.707, as without the fourth."""
    with_it, _ = batch_of([judged_group([1.0, 0.0, 0.0, NAN])], loss_settings(estimator))
    without, _ = batch_of([judged_group([1.0, 0.0, 0.0])], loss_settings(estimator))
    np.testing.assert_array_equal(np.asarray(with_it.advantages)[:3], without.advantages)
    np.testing.assert_array_equal(np.asarray(with_it.weights)[:3], without.weights)
    assert not np.asarray(with_it.advantages)[3].any()
    if estimator == "grpo":
        np.testing.assert_allclose(np.asarray(with_it.advantages)[:3, 4], [1.414, -0.707, -0.707], atol=1e-3)


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "gae", "vtrace"])
def test_the_loss_and_its_gradient_are_those_without_the_answers_that_failed(estimator: str, reduction: str) -> None:
    """Whatever the policy and the values say of them: their own gradient is exactly 0."""
    rewards = [[1.0, NAN, 0.0, 0.5], [NAN, 0.25, 1.0], [NAN, 1.0, NAN]]
    more: dict[str, Any] = {"reduction": reduction}
    if estimator == "gae":
        more["advantage"] = {"estimator": "gae", "trace_decay": 0.9}
    settings = loss_settings(estimator, **more)
    groups = [judged_group(r, f"run/{i}", seed=i) for i, r in enumerate(rewards)]
    batch, stats = batch_of(groups, settings)
    assert (stats.failed_verdicts, stats.unjudged_groups, stats.dropped_groups) == (4, 1, 1)
    kept = np.array([not math.isnan(r) for r in rewards[0] + rewards[1]] + [False] * 3)
    judged = [[t for t in group if t.is_judged] for group in groups[:2]]
    expected, _ = batch_of([[dataclasses.replace(t, group_size=len(g)) for t in g] for g in judged], settings)
    rng = np.random.default_rng(0)
    logprobs, values = -rng.random((10, 16), np.float32), rng.normal(size=(10, 16)).astype(np.float32)
    objective = reinforcement(settings)
    scalars = StepScalars(jax.numpy.int32(1), jax.numpy.int32(1), jax.numpy.float32(0.0))

    def loss(logprobs: Any, values: Any, batch: Batch) -> Any:
        stats = TokenStats(logprobs, jax.numpy.zeros_like(logprobs), None, values)
        return objective(stats, batch, scalars)[0]

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    got = gradient(logprobs, values, jax.device_put(batch))
    wanted = gradient(logprobs[kept], values[kept], jax.device_put(expected))
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-6)
    for of_all, of_judged in zip(got[1], wanted[1], strict=True):
        assert not np.asarray(of_all)[~kept].any()
        np.testing.assert_allclose(np.asarray(of_all)[kept], of_judged, rtol=1e-6, atol=1e-8)
    assert np.abs(wanted[1][0]).max() > 1e-3


def test_an_answer_that_failed_makes_no_variance_and_no_penalty() -> None:
    group = [dataclasses.replace(t, finish_reason="length") for t in judged_group([1.0, 1.0, NAN])]
    batch, stats = batch_of([group], loss_settings("dr_grpo", groups={"zero_variance": "drop"}))
    assert (stats.zero_variance_groups, stats.dropped_groups, stats.unjudged_groups) == (1, 1, 0)
    assert not np.asarray(batch.weights).any()
    _, stats = batch_of([group], loss_settings("dr_grpo", groups={"overlong": "penalize"}))
    assert (stats.penalized_overlong, stats.masked_overlong) == (2, 0)
    _, stats = batch_of([group], loss_settings("dr_grpo", groups={"overlong": "mask"}))
    assert stats.masked_overlong == 2


def test_a_batch_in_which_nothing_was_judged_has_no_reward_rather_than_0() -> None:
    batch, stats = batch_of([judged_group([NAN, NAN])], loss_settings("grpo"))
    assert (stats.reward, stats.reward_parts, stats.failed_verdicts) == (None, {}, 2)
    assert (stats.unjudged_groups, stats.zero_variance_groups) == (1, 0)
    assert not np.asarray(batch.weights).any()


def test_a_part_that_some_answers_lack_is_averaged_over_those_that_have_it() -> None:
    first, second = make_group(rewards=[1.0, 0.0])
    group = [dataclasses.replace(first, reward_parts={"turns": 3.0}), dataclasses.replace(second, reward_parts={})]
    assert batch_of([group], loss_settings("grpo"))[1].reward_parts == {"turns": 3.0}


# Episodes


class Flaky(AdditionTask):
    """Judges answers to problem 0 as its script says, others as the addition does; scoring is in no fixed order."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)

    def score(self, request: RewardRequest) -> RewardResult:
        if request.problem.index == 0 and self.script and (said := self.script.pop(0)) is not None:
            if isinstance(said, BaseException):
                raise said
            return said
        return super().score(request)


def test_a_failed_verdict_amid_a_dialog_ends_it() -> None:
    settings = TaskSettings(provider="keyword_story", turns=4)
    environment = create_environment(Flaky(None, failed("no verdict within 5 s", "timeout")), settings)
    state = environment.reset(environment._task.problem("train", 0))
    first = environment.step(state, Reply("?", "stop", False))
    assert (first.verdict, first.observation) == ("fail", "That is not right. Try again.")
    second = environment.step(first.state, Reply("?", "stop", False))
    assert (second.reward, second.verdict, second.observation) == (None, "timeout", None)
    assert second.reasons == ("no verdict within 5 s",)


def test_failed_verdicts_go_through_a_real_queue_and_are_left_out_by_the_learner(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    right = scored(1.0, {"right": 1.0})
    task = Flaky(right, failed("died\x07", "crashed"), scored(0.0, {"right": 0.0}), RuntimeError("on purpose"))
    bench = Bench(tmp_path, tokenizer, FakeReplica(), task=task, group_size=4)
    bench.worker.identity = dataclasses.replace(bench.worker.identity, group_size=4)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    groups = bench.queue.consumer.lease_groups(2, trained_version=1, max_staleness=1).groups
    first = next(group for group in groups if group[0].group_id == "run/0")
    assert [t.verdict for t in first] == ["pass", "crashed", "fail", "error"]
    assert [t.verdict_reason for t in first] == ["", "died ", "", "RuntimeError: on purpose"]
    assert (bench.total("failed_verdicts"), bench.total("verdicts")) == (2, 8)
    intervals = [r for r in bench.records if r["event"] == "interval" and "failed_verdict_kinds" in r]
    assert [r["failed_verdict_kinds"] for r in intervals] == [{"crashed": 1, "error": 1}]
    assert intervals[0]["failed_verdict_example"] == "problem 0: error: RuntimeError: on purpose"
    batch, stats = rl_batch([first], LossSettings(), sequence_length=32, trained_version=1)
    sampled = np.array([int(np.argmax(t.loss_mask)) for t in first])
    np.testing.assert_allclose(np.asarray(batch.advantages)[range(4), sampled], [1, 0, -1, 0], atol=1e-3)
    assert (stats.reward, stats.failed_verdicts) == (0.5, 2)


@pytest.mark.parametrize("judged", [0, 1])
def test_a_group_with_fewer_than_two_verdicts_is_given_up_for_another(
    tmp_path: Path, tokenizer: Tokenizer, judged: int
) -> None:
    script = [scored(1.0, {})] * judged + [failed("hangs", "timeout")] * (2 - judged)
    bench = Bench(tmp_path, tokenizer, FakeReplica(), task=Flaky(*script))
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    assert (bench.total("unjudged_groups"), bench.total("groups"), bench.total("failed_groups")) == (1, 2, 0)
    assert bench.queue.admin.progress().next_prompt == 3
    (told,) = [r for r in bench.records if r["event"] == "unjudged_group"]
    assert told == {"event": "unjudged_group", "prompt_index": 0, "answers": 2, "judged": judged}


def test_a_lone_answer_needs_no_other_to_compare_with(tmp_path: Path, tokenizer: Tokenizer) -> None:
    bench = Bench(tmp_path, tokenizer, FakeReplica(), task=Flaky(failed("hangs", "timeout")))
    bench.worker.identity = dataclasses.replace(bench.worker.identity, group_size=1)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    assert (bench.total("unjudged_groups"), bench.total("groups")) == (1, 2)


def test_answers_judged_before_one_hangs_keep_their_verdicts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Hangs(AdditionTask):
        calls = 0

        def score(self, request: RewardRequest) -> RewardResult:
            Hangs.calls += request.problem.index == 0
            time.sleep(2.0 if request.problem.index == 0 and Hangs.calls == 3 else 0.0)
            return super().score(request)

    bench = Bench(tmp_path, tokenizer, FakeReplica(), task=Hangs(), reward_timeout_s=0.3, group_size=3)
    bench.worker.identity = dataclasses.replace(bench.worker.identity, group_size=3)
    bench.ready()
    bench.run(lambda: bench.num_ready() == 2)
    groups = bench.queue.consumer.lease_groups(2, trained_version=1, max_staleness=1).groups
    first = next(group for group in groups if group[0].group_id == "run/0")
    assert [t.verdict for t in first] == ["fail", "fail", "timeout"]
    assert first[2].verdict_reason.startswith("no verdict after 0.3 s (rollout.reward_timeout_s)")


# Too many


def test_a_run_with_too_many_failed_verdicts_stops_and_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Broken(AdditionTask):
        def score(self, request: RewardRequest) -> RewardResult:
            return failed("no verdict within 5 s", "timeout")

    bench = Bench(tmp_path, tokenizer, FakeReplica(), task=Broken(), max_failed_verdicts=0.05)
    bench.ready()
    with pytest.raises(FailedVerdictsError) as raised:
        bench.run(lambda: bench.num_ready() == 2)
    message = str(raised.value)
    assert "26 of the latest 26 answers have no verdict (100.0%: 26 timeout)" in message
    assert "expected at most 25.6 of 512" in message
    assert "timeout: no verdict within 5 s" in message
    assert "rollout.max_failed_verdicts (now 0.05)" in message
    assert bench.total("failed_verdicts") >= 26  # groups that ran already may end
    assert bench.num_ready() == 0


def watched(verdicts: str, *, max_share: float, window: int) -> Counter[str]:
    """Gives a watch these verdicts, one letter each: p(ass), f(ail), t(imeout) or c(rashed)."""
    count: Counter[str] = Counter()
    watch = VerdictWatch(max_share, count=count, window=window)
    state = EpisodeState(Problem(7, "", "", {}))
    named: dict[str, Outcome] = {
        "p": Outcome(1.0, {}, "pass", None, state),
        "f": Outcome(0.0, {}, "fail", None, state),
        "t": unjudged(state, "timeout", "late"),
        "c": unjudged(state, "crashed", "dead"),
    }
    for letter in verdicts:
        watch.add(7, [named[letter]])
    return count


def test_wrong_answers_are_verdicts_too() -> None:
    assert watched("f" * 500, max_share=0.0, window=8) == {"verdicts": 500}


def test_failures_that_the_window_has_left_behind_count_no_more() -> None:
    assert watched("tpppppppcppppppp" * 20, max_share=0.125, window=8)["failed_verdicts"] == 40
    with pytest.raises(FailedVerdictsError, match=r"2 of the latest 8 .*\(25\.0%: 1 timeout, 1 crashed\)"):
        watched("tppppppc", max_share=0.125, window=8)


def test_the_share_can_allow_all_or_none() -> None:
    assert watched("t" * 100, max_share=1.0, window=8)["failed_verdicts"] == 100
    with pytest.raises(FailedVerdictsError, match="1 of the latest 3 answers"):
        watched("pft", max_share=0.0, window=8)
