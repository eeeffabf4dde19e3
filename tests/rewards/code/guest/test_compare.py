"""What equals what where cases are data."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.code.guest.compare import same_output, same_value


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (3, 3),
        ((1, 2), [1, 2]),
        ([(1, "a")], [[1, "a"]]),
        (0.1 + 0.2, 0.3),
        (2.0, 2),
        ({1: "a"}, {"1": "a"}),
        (None, None),
        (True, True),
        (float("nan"), float("nan")),
        (float("inf"), float("inf")),
    ],
)
def test_equal(got: Any, expected: Any) -> None:
    assert same_value(got, expected)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (1, True),
        (True, 1),
        (1, "1"),
        ([1], [1, 2]),
        ([2, 1], [1, 2]),
        ({1, 2}, [1, 2]),
        ("12", [1, 2]),
        (0.301, 0.3),
        (None, 0),
        (10**400, 1.0),
        ({1: "a", "1": "a"}, {"1": "a"}),
        ({"a": 1}, {"b": 1}),
        (float("nan"), 1.0),
    ],
)
def test_not_equal(got: Any, expected: Any) -> None:
    assert not same_value(got, expected)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ("3\n", "3"),
        ("a b \nc\n\n", "a b\nc"),
        ("0.3333333", "0.33333333"),
        ("1  2", "1 2"),
        ("1\r\n2\r\n", "1\n2"),
        ("", ""),
    ],
)
def test_same_output(got: str, expected: str) -> None:
    assert same_output(got, expected) == ""


@pytest.mark.parametrize(
    ("got", "expected", "why"),
    [
        ("4", "3", "line 1 is '4', expected '3'"),
        ("3", "3\n4", "line 2 is missing, expected '4'"),
        ("3\n4", "3", "2 lines, expected 1"),
        ("12", "1 2", "line 1 is '12', expected '1 2'"),
        ("nan", "0.5", "line 1 is 'nan', expected '0.5'"),
        ("3.0", "3", "line 1 is '3.0', expected '3'"),
        ("0.4", "0.3", "line 1 is '0.4', expected '0.3'"),
    ],
)
def test_other_output(got: str, expected: str, why: str) -> None:
    assert same_output(got, expected) == why
