"""An answer that is the reference, letter by letter."""

from __future__ import annotations

import pytest

from rewards.tasks.exact_reward import exact_match


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Paris", "Paris", 1.0),
        (" Paris\n", "Paris", 1.0),
        ("cafe\u0301", "caf\u00e9", 1.0),
        ("7", 7, 1.0),
        ("paris", "Paris", 0.0),
        ("Paris.", "Paris", 0.0),
        ("P aris", "Paris", 0.0),
        ("", "Paris", 0.0),
    ],
)
def test_only_blanks_around_it_may_differ(answer: str, reference: object, expected: float) -> None:
    assert exact_match("?", answer, {"answer": reference}) == expected
