"""Outcomes of an answer: what a failed verdict can't have."""

from __future__ import annotations

import pytest

from rewards.contracts import EpisodeState, Outcome, Problem

STATE = EpisodeState(Problem(0, "1+1=", "2", {}))


def test_a_reward_and_a_next_turn_belong_to_a_judged_answer_alone() -> None:
    assert Outcome(0.0, {}, "fail", "again", STATE).observation == "again"
    assert Outcome(1.0, {}, "pass", None, STATE).reward == 1.0
    assert Outcome(None, {}, "timeout", None, STATE).reward is None
    for reward, verdict in ((None, "pass"), (0.0, "timeout")):
        with pytest.raises(ValueError, match="a failed verdict has none"):
            Outcome(reward, {}, verdict, None, STATE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a failed verdict ends the episode"):
        Outcome(None, {}, "timeout", "again", STATE)
