"""Settings of rewards that come later: what goes together, and what can't."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rewards.settings import TaskSettings

_LATER = {"reward": "delayed", "delayed": {"window_s": 60}}


def settings(**given: Any) -> TaskSettings:
    return TaskSettings.model_validate({"provider": "jsonl_math", **_LATER, **given})


def test_a_window_and_what_becomes_of_answers_without_a_reward() -> None:
    found = settings().delayed
    assert found is not None
    assert (found.window_s, found.timeout_score) == (60.0, None)
    scored = settings(delayed={"window_s": 0.5, "on_timeout": -1}).delayed
    assert scored is not None
    assert scored.timeout_score == -1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"delayed": None}, "go together: set window_s there"),
        ({"reward": "math"}, r'the table \[task.delayed\] needs reward = "delayed", got \'math\''),
        ({"delayed": {"window_s": 0}}, "greater than 0"),
        ({"delayed": {"window_s": 60, "on_timeout": "wait"}}, "Input should be 'drop'"),
        ({"delayed": {"window_s": 60, "on_timeout": 1e9}}, "too large for a reward"),
        ({"provider": "rows"}, "needs delayed.heldout_reward, which judges held-out answers at once"),
        ({"delayed": {"window_s": 60, "heldout_reward": "delayed"}}, "can't be delayed itself"),
        ({"curriculum": {"measured": True}}, "curriculum.measured needs rewards at once"),
        ({"turns": 2}, "needs an environment that ends without one"),
        ({"environment": "mine:Game"}, "needs an environment that ends without one"),
    ],
)
def test_what_does_not_fit_is_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**given)


def test_sources_take_the_delay_from_the_task_unless_they_have_a_reward_of_their_own() -> None:
    found = settings(sources=[{"path": "a.jsonl"}, {"path": "b.jsonl", "reward": "math"}])
    first, second = found.sources
    assert (first.delayed, second.delayed) == (found.delayed, None)
    assert found.longest_window_s() == 60.0
    assert TaskSettings(provider="jsonl_math").longest_window_s() == 0.0
