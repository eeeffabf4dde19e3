"""Failed verdicts in records: each with its reason and without a reward."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import numpy as np
import pytest

from learner_jax.contracts import trajectory as wire
from learner_jax.contracts.weights import ContractError, decode_group, encode_group
from rewards.contracts import task as protocol
from rewards.contracts.environment import EpisodeState, Outcome
from rewards.contracts.task import Failure, Problem, RewardResult, scored
from serving_bridge.evaluation.verdicts import reason_text, sound
from tests.support.trajectories import failing, make_group

NAN = float("nan")


def test_both_packages_name_the_same_verdicts() -> None:
    assert set(get_args(wire.Verdict)) == set(get_args(protocol.Verdict)) == {"pass", "fail", *get_args(Failure)}


@pytest.mark.parametrize("verdict", protocol.FAILURES)
def test_a_failed_verdict_travels_with_its_reason_and_has_no_reward(verdict: Failure) -> None:
    first, second = make_group(rewards=[1.0, 0.0])
    (got, other) = decode_group(encode_group([failing(first, verdict), second]))
    assert (got.verdict, got.verdict_reason, got.is_judged) == (verdict, "no verdict within 5 s", False)
    assert (other.verdict, other.total_reward) == ("fail", 0.0)
    with pytest.raises(ContractError, match=f"run/0/0 has no reward: its verdict is {verdict}"):
        _ = got.total_reward


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "maybe"}, "verdict is 'maybe', expected one of pass, fail, timeout, crashed, refused, error"),
        ({"verdict": "timeout"}, "rewards, although its verdict is timeout"),
        ({"verdict": "crashed", "rewards": np.zeros(5, np.float32)}, "rewards, although its verdict is crashed"),
        ({"verdict_reason": "why"}, "verdict_reason is for failed verdicts, not pass"),
        ({"reward_parts": {"a": NAN}}, "reward_parts: a is nan"),
        (
            {"verdict": "error", "rewards": np.zeros(5, np.float32), "reward_parts": {}, "verdict_reason": "x" * 201},
            "201 characters, expected at most 200",
        ),
    ],
)
def test_a_record_with_a_wrong_verdict_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    first = make_group(rewards=[1.0, 1.0])[0]
    with pytest.raises(ContractError, match=message):
        dataclasses.replace(first, **change).validate()


def test_a_failed_verdict_has_no_score_and_a_judged_answer_has_one() -> None:
    with pytest.raises(ValueError, match="score 0.0 with verdict 'timeout'"):
        RewardResult(0.0, {}, "timeout")
    with pytest.raises(ValueError, match="score None with verdict 'fail'"):
        RewardResult(None, {}, "fail")
    with pytest.raises(ValueError, match="a failed verdict has none"):
        Outcome(0.0, {}, "crashed", None, EpisodeState(Problem(0, "", "", {})))
    with pytest.raises(ValueError, match="ends the episode"):
        Outcome(None, {}, "crashed", "go on", EpisodeState(Problem(0, "", "", {})))


@pytest.mark.parametrize("score", [NAN, math.inf, -math.inf, 1e39, 1.1e6])
def test_a_score_that_no_record_holds_is_a_failed_verdict(score: float) -> None:
    assert scored(score, {}).verdict == "error"
    assert scored(0.5, {"part": score}).score is None
    state = EpisodeState(Problem(0, "", "", {}))
    assert sound(Outcome(score, {}, "fail", None, state)).reasons[0].startswith(f"the environment gave reward {score}")
    assert scored(protocol.MAX_REWARD, {}).verdict == "pass"


@pytest.mark.parametrize(
    ("reward", "parts"), [(2e6, {}), (-2e6, {}), (0.0, {"a": 2e6}), (0.0, {"\x1b": 1.0}), (0.0, {"a": NAN})]
)
def test_a_reward_that_no_record_holds_is_a_failed_verdict_and_does_not_break_its_group(
    reward: float, parts: dict[str, float]
) -> None:
    found = sound(Outcome(reward, parts, "fail", None, EpisodeState(Problem(0, "", "", {}))))
    assert (found.verdict, found.reward, found.parts) == ("error", None, {})
    assert found.reasons[0].startswith("the environment")


def test_what_a_verifier_says_is_kept_short_and_printable() -> None:
    assert reason_text(("a\x1b[31m\n", "\ud800b" + "c" * 500)) == "a [31m ;  b" + "c" * 189
