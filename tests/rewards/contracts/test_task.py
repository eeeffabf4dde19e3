"""Verdicts: a judged answer has a score, a failed verdict has none, and what is a pass."""

from __future__ import annotations

import math
from typing import Any

import pytest

from learner_jax.contracts import ContractError, record_bounds
from rewards.contracts import (
    MAX_PART_NAME,
    MAX_PARTS,
    MAX_REWARD,
    PASS_SCORE,
    RewardResult,
    failed,
    is_reward,
    scored,
)


def test_a_score_belongs_to_a_judged_answer_alone() -> None:
    assert RewardResult(0.0, {}, "fail").score == 0.0
    assert RewardResult(None, {}, "timeout").score is None
    wrong: list[tuple[float | None, Any]] = [(None, "fail"), (None, "pass"), (0.0, "timeout"), (1.0, "error")]
    for score, verdict in wrong:
        with pytest.raises(ValueError, match="a judged answer has a score, a failed verdict none"):
            RewardResult(score, {}, verdict)


def test_a_pass_needs_no_reasons_and_a_fail_keeps_them() -> None:
    assert scored(PASS_SCORE, {"a": 1.0}, reasons=("why",)) == RewardResult(PASS_SCORE, {"a": 1.0}, "pass", ())
    below = math.nextafter(PASS_SCORE, 0.0)
    assert scored(below, {}, reasons=("why",)) == RewardResult(below, {}, "fail", ("why",))


def test_a_score_or_a_part_that_is_no_number_is_a_failed_verdict_that_names_it() -> None:
    expected = "expected a finite number from -1,000,000 to 1,000,000"
    assert scored(math.nan, {"a": 1.0}) == failed(f"the verifier gave score nan, {expected}")
    assert scored(1.0, {"a": 1.0, "b": math.inf}) == failed(f"the verifier gave b inf, {expected}")
    assert failed("late", "timeout") == RewardResult(None, {}, "timeout", ("late",))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_reward_is_what_a_record_can_hold(sign: int) -> None:
    """Else `tools.score` would take what a run buries."""
    assert is_reward(sign * record_bounds.MAX_REWARD)
    assert not is_reward(sign * math.nextafter(record_bounds.MAX_REWARD, math.inf))
    assert not is_reward(sign * math.inf)


def test_parts_are_what_a_record_can_hold() -> None:
    most = {f"{number}".zfill(MAX_PART_NAME): MAX_REWARD for number in range(MAX_PARTS)}
    record_bounds.check_parts("parts", most)
    assert scored(1.0, most).parts == most
    for wrong, said in (({**most, "more": 0.0}, "65 parts"), ({"x" * 129: 0.0}, "at most 128 characters")):
        with pytest.raises(ContractError):
            record_bounds.check_parts("parts", wrong)
        assert said in scored(1.0, wrong).reasons[0]
