"""Evaluation: over what was asked and judged; tokenizer and client are real, the replica behind the session is not."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts.task import Problem, RewardRequest, RewardResult, Split, failed, scored
from serving_bridge.evaluation.figures import Evaluation, EvaluationError
from serving_bridge.evaluation.heldout import HeldOut
from serving_bridge.evaluation.single_answers import SingleAnswers
from serving_bridge.evaluation.skill import PromptEncoder, evaluate
from serving_bridge.routing.registry import ReplicaRow
from serving_bridge.settings.serving import EvaluationSettings, RolloutSettings
from serving_bridge.text.tokenizer import Tokenizer
from serving_bridge.vllm.answers import Unreachable
from serving_bridge.vllm.client import VllmClient
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import AdditionTask, FakeReplica, FakeSession, Inline, choice, replies, virtually
from tools.reporting.comparison import compared

LIMIT = 20


class Exam(AdditionTask):
    """Judges every problem as `verdict` says of its index; those of `long` have prompts beyond the limit."""

    def __init__(self, verdict: Callable[[int], Any] = lambda _: 1.0, *, long: Callable[[int], bool] = lambda _: False):
        self.verdict = verdict
        self.long = long

    def problem(self, split: Split, index: int) -> Problem:
        found = super().problem(split, index)
        return Problem(index, found.question * (9 if self.long(index) else 1), found.answer, {})

    def score(self, request: RewardRequest) -> RewardResult:
        said = self.verdict(request.problem.index)
        if isinstance(said, BaseException):
            raise said
        return said if isinstance(said, RewardResult) else scored(said, {})


def run(
    tokenizer: Tokenizer, task: Any, replica: FakeReplica | None = None, num_problems: int = 6, **options: Any
) -> Evaluation:
    encoder = PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=LIMIT)
    client = VllmClient("http://a", FakeSession({"a": replica or FakeReplica(stop=1.0)}))
    given = {"max_tokens": 4, "timeout_s": 5.0, "scoring": Inline()}
    play = SingleAnswers(task, encoder, **(given | options))
    return virtually(evaluate(client, task, encoder, play, num_problems=num_problems, num_samples=3))


def test_what_was_not_asked_is_in_no_accuracy(tokenizer: Tokenizer) -> None:
    """Of 15 problems 5 are asked and right, and 10 are too long."""
    found = run(tokenizer, Exam(long=lambda index: index % 3 > 0), num_problems=15)
    assert (found.accuracy, found.mean_score, found.num_problems, found.num_wanted) == (1.0, 1.0, 5, 15)
    assert found.skipped == (1, 2, 4, 5, 7, 8, 10, 11, 13, 14)
    assert found.scores == (1.0, None, None) * 5
    assert found.notes == (
        f"10 of 15 problems were not asked: their prompts have more than {LIMIT} tokens (rollout.max_prompt_tokens); "
        f"the first is problem 1",
    )
    assert [sample.prompt for sample in found.samples] == [
        AdditionTask().problem("heldout", index).question for index in (0, 3, 6)
    ]


def test_nothing_asked_is_an_error_and_no_0(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        EvaluationError, match=r"none of 6 held-out problems .* more than 20 tokens; raise rollout\.max_"
    ):
        run(tokenizer, Exam(long=lambda _: True))


def test_failed_verdicts_are_counted_beside_and_not_as_wrong(tokenizer: Tokenizer) -> None:
    verdicts = [1.0, failed("late", "timeout"), 0.0, failed("dead\x1b", "crashed"), RuntimeError("on purpose"), 0.5]
    found = run(tokenizer, Exam(verdicts.__getitem__))
    assert (found.accuracy, found.mean_score, found.num_problems) == (1 / 3, 0.5, 3)
    assert found.failed_verdicts == {"timeout": 1, "crashed": 1, "error": 1}
    assert found.failed_verdict_example == "problem 1: timeout: late"
    assert found.scores == (1.0, None, 0.0, None, None, 0.5)
    assert found.samples[1].reason == "late"
    assert [(sample.score, sample.verdict) for sample in found.samples] == [
        (1.0, "pass"),
        (None, "timeout"),
        (0.0, "fail"),
    ]
    (note,) = found.notes
    assert "3 of 6 answers have no verdict" in note
    assert "too many to trust the figures" in note


def test_a_few_failed_verdicts_are_noted_without_alarm(tokenizer: Tokenizer) -> None:
    found = run(tokenizer, Exam(lambda i: failed("late", "timeout") if i == 7 else 1.0), num_problems=40)
    (note,) = found.notes
    assert note.startswith("1 of 40 answers have no verdict")
    assert "too many" not in note


def test_nothing_judged_is_an_error_with_an_example(tokenizer: Tokenizer) -> None:
    with pytest.raises(EvaluationError, match="none of 6 held-out answers was judged; problem 0: timeout: late"):
        run(tokenizer, Exam(lambda _: failed("late", "timeout")))


def test_answers_that_were_cut_are_counted(tokenizer: Tokenizer) -> None:
    found = run(tokenizer, Exam(), FakeReplica(stop=0.0))
    assert (found.num_cut, found.accuracy) == (6, 1.0)
    assert found.notes == ("6 of 6 judged answers were cut at the longest length",)


def test_requests_that_fail_or_abort_are_tried_again_and_make_no_wrong_answer(tokenizer: Tokenizer) -> None:
    def lost(_: Any) -> Any:
        raise ConnectionResetError("on purpose")

    def aborted(_: Any) -> Any:
        return replies(*[choice([9, 1])] * 5, choice([9], "abort"))

    replica = FakeReplica(stop=1.0, script=[lost, aborted, lambda _: (500, b"{}")])
    found = run(tokenizer, Exam(), replica)
    assert (found.accuracy, found.num_problems, len(replica.bodies)) == (1.0, 6, 4)


@pytest.mark.parametrize(
    ("max_tokens", "concurrency", "together"),
    [(4, 64, [64, 6]), (4, 25, [25, 25, 20]), (100, 64, [2] * 35), (300, 9, [1] * 70)],
)
def test_short_answers_share_a_request_and_long_ones_wait_for_nobody(
    tokenizer: Tokenizer, max_tokens: int, concurrency: int, together: list[int]
) -> None:
    """Each answer is that to its own prompt, whichever request was answered first."""
    most = 0

    async def echo(body: dict[str, Any]) -> Any:
        nonlocal most
        replica.in_flight += len(body["prompts"])
        most = max(most, replica.in_flight)
        await asyncio.sleep(1 / len(replica.bodies))
        replica.in_flight -= len(body["prompts"])
        return replies(*(choice([*prompt[:2], 1]) for prompt in body["prompts"]))

    class Echo(Exam):
        def score(self, request: RewardRequest) -> RewardResult:
            return scored(float(request.problem.question.startswith(request.response)), {})

    replica = FakeReplica(script=[echo] * 70)
    found = run(tokenizer, Echo(), replica, num_problems=70, max_tokens=max_tokens, concurrency=concurrency)
    assert [len(body["prompts"]) for body in replica.bodies] == together
    assert (found.num_problems, found.mean_score) == (70, 1.0)
    assert together[0] <= most <= concurrency


def test_a_request_is_tried_four_times_with_growing_pauses(tokenizer: Tokenizer) -> None:
    def lost(_: Any) -> Any:
        times.append(asyncio.get_running_loop().time())
        raise ConnectionResetError("on purpose")

    for failures in (3, 4):
        times: list[float] = []
        replica = FakeReplica(stop=1.0, script=[lost] * failures)
        with pytest.raises(Unreachable) if failures == 4 else nullcontext():
            assert run(tokenizer, Exam(), replica, num_problems=1).num_problems == 1
        assert [after - before for before, after in itertools.pairwise(times)] == pytest.approx(
            [0.5, 1.0, 2.0][: failures - 1]
        )


@pytest.mark.parametrize(("temperature", "sampled_at"), [(0.0, 0.0), (0.5, 0.5)])
def test_answers_are_sampled_as_asked(tokenizer: Tokenizer, temperature: float, sampled_at: float) -> None:
    replica = FakeReplica(stop=1.0)
    run(tokenizer, Exam(), replica, temperature=temperature)
    assert {body["sampling_params"]["temperature"] for body in replica.bodies} == {sampled_at}


def test_a_prompt_of_just_the_longest_length_is_asked(tokenizer: Tokenizer) -> None:
    problem = Exam().problem("heldout", 0)
    length = len(tokenizer.encode_prompt(problem.question, chat=False))
    for limit, is_asked in ((length, True), (length - 1, False)):
        encoder = PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=limit)
        assert (encoder.encode(problem) is not None) is is_asked


def test_a_tenth_without_verdict_is_not_too_many(tokenizer: Tokenizer) -> None:
    for late, alarms in ((4, False), (5, True)):
        found = run(
            tokenizer, Exam(lambda i, late=late: failed("late", "timeout") if i < late else 1.0), num_problems=40
        )
        assert ("too many to trust" in found.notes[0]) is alarms


def test_a_request_that_fails_for_good_ends_the_evaluation(tokenizer: Tokenizer) -> None:
    def lost(_: Any) -> Any:
        raise ConnectionResetError("on purpose")

    with pytest.raises(Unreachable):
        run(tokenizer, Exam(), FakeReplica(stop=1.0, script=[lost] * 99))


def test_a_verifier_that_hangs_is_a_failed_verdict(tokenizer: Tokenizer) -> None:
    def slow(index: int) -> float:
        time.sleep(1.0 if index == 2 else 0.0)
        return 1.0

    encoder = PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=LIMIT)
    client = VllmClient("http://a", FakeSession({"a": FakeReplica(stop=1.0)}))
    play = SingleAnswers(Exam(slow), encoder, max_tokens=4, timeout_s=5.0, reward_timeout_s=0.4)
    found = asyncio.run(evaluate(client, Exam(slow), encoder, play, num_problems=4, num_samples=0))
    assert (found.failed_verdicts, found.accuracy, found.scores) == ({"timeout": 1}, 1.0, (1.0, 1.0, None, 1.0))


def test_the_versions_that_answered_are_told(tokenizer: Tokenizer) -> None:
    replica = FakeReplica(script=[lambda _: replies(*[choice([9, 1], spans=[("2", 0, 1), ("4", 1, 2)])] * 6)])
    assert run(tokenizer, Exam(), replica).versions == (2, 4)


@pytest.mark.parametrize("task", [Exam(long=lambda _: True), Exam(lambda _: failed("late", "timeout"))])
def test_amid_training_an_evaluation_without_result_says_so_and_logs_no_figure(tokenizer: Tokenizer, task: Any) -> None:
    records: list[dict[str, Any]] = []
    rollout = RolloutSettings(max_prompt_tokens=LIMIT, max_tokens=4)
    held_out = HeldOut(
        task,
        PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=LIMIT),
        EvaluationSettings(num_problems=4, every=1),
        rollout,
        scoring=Inline(),
        log=lambda event, **fields: records.append({"event": event, **fields}),
    )
    client = VllmClient("http://a", FakeSession({"a": FakeReplica(stop=1.0)}))
    virtually(held_out.evaluate(client, ReplicaRow("a", "http://a", "healthy", 3, 0, 0.0)))
    assert [record["event"] for record in records] == ["retry"]
    assert records[0]["error"].startswith("held-out evaluation at version 3: none of 4 held-out")


# Before and after


def event(*scores: float | None, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    judged = [score for score in scores if score is not None]
    return {
        "accuracy": sum(score == 1 for score in judged) / len(judged),
        "mean_score": sum(judged) / len(judged),
        "num_problems": len(judged),
        "scores": list(scores),
        "notes": list(notes),
    }


def test_the_same_problems_are_compared_as_they_were_measured() -> None:
    found = compared(event(1.0, None, 0.25, notes=("1 was skipped",)), event(1.0, None, 1.0))
    assert found == {
        "accuracy_before": 0.5,
        "accuracy_after": 1.0,
        "mean_score_before": 0.625,
        "mean_score_after": 1.0,
        "num_problems": 2,
        "evaluation_notes": ["before training: 1 was skipped"],
    }


def test_other_problems_before_than_after_are_left_out_of_both() -> None:
    """The hard problem 2 had no verdict before training: it must not look like a loss of skill."""
    found = compared(event(1.0, 0.0, None, 1.0), event(1.0, 1.0, 0.0, None))
    assert (found["accuracy_before"], found["accuracy_after"], found["num_problems"]) == (0.5, 1.0, 2)
    assert found["evaluation_notes"] == [
        "3 problems were judged before training and 3 after it; the figures are over the 2 judged both times"
    ]


def test_nothing_in_common_compares_nothing() -> None:
    found = compared(event(1.0, None), event(None, 1.0))
    assert (found["accuracy_before"], found["accuracy_after"], found["num_problems"]) == (None, None, 0)


def test_one_measurement_alone_is_shown_as_it_is() -> None:
    found = compared(event(1.0, None, 0.0), None)
    assert (found["accuracy_before"], found["accuracy_after"], found["num_problems"]) == (0.5, None, 2)
    assert compared(None, None)["num_problems"] is None


def test_the_summary_compares_the_problems_judged_both_times(tmp_path: Path) -> None:
    from serving_bridge.telemetry.metrics_log import MetricsLog, read_metrics
    from tools.reporting.figures import RunHistory, summarize

    log = MetricsLog(tmp_path / "metrics.jsonl", "train")
    log.write("evaluation", which="before", samples=[], **event(1.0, 0.0, None))
    log.write("evaluation", which="after", samples=[], **event(1.0, None, 0.0))
    log.close()
    history = RunHistory()
    history.add(read_metrics(tmp_path / "metrics.jsonl"))
    summary = summarize(history)
    assert (summary["accuracy_before"], summary["accuracy_after"], summary["num_problems"]) == (1.0, 1.0, 1)
    assert "judged both times" in summary["evaluation_notes"][0]
