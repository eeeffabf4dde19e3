"""Answers without verdict: what no record could hold becomes one, and too many of them end the run."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from learner_jax.contracts import MAX_REASON, MAX_REWARD
from rewards.contracts import EpisodeState, Failure, Outcome, Problem
from serving_bridge.evaluation.verdicts import FailedVerdictsError, VerdictWatch, reason_text, sound, unjudged

STATE = EpisodeState(Problem(0, "1+1=", "2", {}))
PASSED = Outcome(1.0, {}, "pass", None, STATE)


def lost(failure: Failure, reason: str = "why") -> Outcome:
    return unjudged(STATE, failure, reason)


@pytest.mark.parametrize("reward", [MAX_REWARD, -MAX_REWARD, 0.0, None])
def test_what_a_record_can_hold_stays(reward: float | None) -> None:
    given = Outcome(reward, {"a": 1.0}, "fail", None, STATE) if reward is not None else lost("timeout")
    assert sound(given) is given


@pytest.mark.parametrize("reward", [2 * MAX_REWARD, -2 * MAX_REWARD, math.nan])
def test_a_reward_that_no_record_holds_is_a_failed_verdict(reward: float) -> None:
    found = sound(Outcome(reward, {}, "fail", "again", STATE))
    assert (found.reward, found.verdict, found.observation, found.state) == (None, "error", None, STATE)
    assert found.reasons[0].startswith(f"the environment gave reward {reward}, expected one from ")


def test_a_part_that_no_record_holds_is_a_failed_verdict() -> None:
    found = sound(Outcome(1.0, {"a": math.nan}, "pass", None, STATE))
    assert (found.reward, found.verdict) == (None, "error")
    assert "the environment's parts of a reward" in found.reasons[0]


def test_reasons_are_one_bounded_line() -> None:
    assert reason_text(("a\x1b\nb", "c")) == "a  b; c"
    assert len(reason_text(("x" * 10_000,))) == MAX_REASON


def test_failures_count_while_they_are_among_the_latest() -> None:
    count: Counter[str] = Counter()
    watch = VerdictWatch(0.5, count=count, window=4)
    watch.add(1, [lost("timeout"), PASSED, lost("timeout")])
    watch.add(2, [PASSED, PASSED, lost("crashed")])  # the first has left
    watch.add(3, [lost("crashed")])
    with pytest.raises(
        FailedVerdictsError,
        match=r"^3 of the latest 4 answers have no verdict \(75.0%: 2 crashed, 1 refused\), expected at most 2 of 4; "
        r"the last one, problem 4: refused: no  way\. ",
    ):
        watch.add(4, [lost("refused", "no \x1bway")])
    assert count == {"verdicts": 8, "failed_verdicts": 5}


def test_a_young_run_is_not_ended_by_its_first_failures() -> None:
    watch = VerdictWatch(0.5, count=Counter(), window=4)
    watch.add(1, [lost("timeout"), lost("timeout")])
    with pytest.raises(FailedVerdictsError, match="3 of the latest 3 answers"):
        watch.add(1, [lost("timeout")])
    all_may_fail = VerdictWatch(1.0, count=Counter(), window=4)
    all_may_fail.add(1, [lost("timeout")] * 9)


def test_kinds_are_told_once_with_the_latest_as_an_example() -> None:
    watch = VerdictWatch(1.0, count=Counter())
    assert watch.take() == {}
    watch.add(1, [lost("timeout"), PASSED])
    watch.add(2, [lost("timeout"), lost("error", "odd")])
    assert watch.take() == {
        "failed_verdict_kinds": {"timeout": 2, "error": 1},
        "failed_verdict_example": "problem 2: error: odd",
    }
    watch.add(3, [PASSED])
    assert watch.take() == {}
