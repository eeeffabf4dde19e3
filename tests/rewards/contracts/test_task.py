"""Verdicts: a judged answer has a score, a failed verdict has none, and what is a pass."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rewards.contracts import PASS_SCORE, RewardResult, failed, is_reward, scored


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
    assert scored(math.nan, {"a": 1.0}) == failed("the verifier gave score nan")
    assert scored(1.0, {"a": 1.0, "b": math.inf}) == failed("the verifier gave b inf")
    assert failed("late", "timeout") == RewardResult(None, {}, "timeout", ("late",))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_reward_is_finite_as_float32(sign: int) -> None:
    assert is_reward(sign * 3.4028234e38)
    assert not is_reward(sign * 3.4028236e38)
    assert not is_reward(sign * math.inf)
