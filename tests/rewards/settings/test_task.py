"""Settings of a task: numbers, texts that must say something, and what names a file."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rewards.settings import TaskSettings
from rewards.settings.task import names_file


def settings(**given: Any) -> TaskSettings:
    return TaskSettings(provider="jsonl_math", **given)


def test_what_has_a_slash_or_the_end_of_one_is_a_file() -> None:
    assert [names_file(name) for name in ("a/b", "a.jsonl", "a.json", "package.module:name")] == [True] * 3 + [False]


def test_whole_numbers_stand_for_themselves_and_nothing_else_does() -> None:
    found = settings(turn_discount=1, score_timeout_s=7)
    assert (found.turn_discount, found.score_timeout_s) == (1.0, 7.0)
    assert type(found.score_timeout_s) is float
    for value in (True, "1", 2**31, 10**400):
        with pytest.raises(ValidationError):
            settings(turn_discount=value)


def test_a_prompt_asks_the_question() -> None:
    assert settings(prompt_template="Q: {question}").prompt_template == "Q: {question}"
    with pytest.raises(ValidationError, match="every prompt would be the same"):
        settings(prompt_template="Q: question")


def test_feedback_says_something_where_another_turn_follows() -> None:
    assert settings(turns=1, feedback=" ").turns == 1
    assert settings(turns=2).turns == 2
    with pytest.raises(ValidationError, match="feedback is empty, but turns above 1 come after it"):
        settings(turns=2, feedback=" ")
