"""What a user's function gave, as a score and its parts, and what to change where it was refused something."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import pytest

from rewards.sandbox.user_code import call_runner, read_score, refused_hint


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (0.5, {"score": 0.5}),
        (True, {"score": 1.0}),
        (np.float32(0.25), {"score": 0.25}),
        ({"a": 0.5, "b": 1}, {"score": 1.5, "parts": {"a": 0.5, "b": 1.0}}),
        ({"a": 0.5, "score": 2, "b": 1}, {"score": 2.0, "parts": {"a": 0.5, "b": 1.0}}),
        ({"score": 0}, {"score": 0.0, "parts": {}}),
        ({"\x1b\ud800": 1}, {"score": 1.0, "parts": {"\\x1b\\ud800": 1.0}}),
        ({1: np.int64(3)}, {"score": 3.0, "parts": {"1": 3.0}}),
    ],
)
def test_numbers_and_named_numbers_are_read(given: Any, read: dict[str, Any]) -> None:
    found = read_score(given)
    assert found == read
    assert type(found["score"]) is float


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (math.nan, ValueError, "a reward is nan, expected a finite number"),
        (math.inf, ValueError, "a reward is inf, expected a finite number from -1,000,000 to 1,000,000"),
        (2e6, ValueError, "a reward is 2000000.0, expected a finite number"),
        (10**400, ValueError, "a reward is 10000000"),
        ({str(number): 0 for number in range(65)}, ValueError, "a dict of 65 numbers, expected at most 64"),
        ({"x" * 10_000: 0}, ValueError, r"called x{40}\.\.\., expected at most 128 characters"),
        ({"a": -math.inf}, ValueError, "the part 'a' of a reward is -inf"),
        ({}, ValueError, "an empty dict"),
        ("1", TypeError, "a reward is '1', expected a number"),
        (None, TypeError, "a reward is None"),
        ({"a": [1]}, TypeError, r"the part 'a' of a reward is \[1\]"),
    ],
)
def test_what_is_no_finite_number_is_an_error(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_score(given)


def test_who_was_refused_something_learns_what_to_set() -> None:
    refused, wrapped = PermissionError("no"), RuntimeError("Operation not permitted: socket")
    outer = ValueError("outer")
    outer.__cause__ = refused
    for error in (refused, wrapped, outer):
        assert "set task.score_confined to false" in refused_hint(error, confined=True)
        assert refused_hint(error, confined=False) == ""
    assert refused_hint(ValueError("odd"), confined=True) == ""


def test_functions_are_called_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.SelectorEventLoop()
    monkeypatch.setattr(asyncio, "SelectorEventLoop", lambda selector: loop)

    async def later(value: int) -> int:
        return value + 1

    run = call_runner()
    assert (run(later, 1), run(lambda value: value, 1)) == (2, 1)
    loop.close()
