"""Values come back as they are, and hostile text comes back as nothing."""

from __future__ import annotations

import datetime
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.code.guest import text, values
from rewards.code.guest.values import Malformed

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.sets(st.integers() | st.text(max_size=3), max_size=3)
    ),
    max_leaves=12,
)


def handle(value: Any, plain: Any) -> Any:
    return ["r", {"class": type(value).__name__}, plain]


def back(value: Any) -> Any:
    return values.decode(text.loads(text.dumps(values.encode(value, handle))), lambda about, plain: (about, plain))


@given(PLAIN)
def test_plain_data_comes_back_with_its_types(value: Any) -> None:
    got = back(value)
    assert (got, repr(type(got))) == (value, repr(type(value)))


@pytest.mark.parametrize(
    "value",
    [
        1 << 3000,
        -(1 << 53),
        True,
        complex(1, -2),
        float("inf"),
        range(2, 9, 3),
        frozenset({1, 2}),
        bytearray(b"ab"),
        Counter("aab"),
        OrderedDict([("b", 1), ("a", 2)]),
        deque([1, (2, 3)]),
        Decimal("1.10"),
        Fraction(3, 7),
        datetime.date(2026, 11, 30),
        datetime.datetime(2026, 11, 30, 1, 2, 3, tzinfo=datetime.UTC),
        datetime.timedelta(days=-1, seconds=5),
        int,
        {"a": 1}.keys(),
        {"a": 1}.items(),
    ],
    ids=repr,
)
def test_what_the_library_has_comes_back(value: Any) -> None:
    got = back(value)
    assert (got, type(got)) == (value, type(value))


def test_a_default_dict_comes_back_without_its_function() -> None:
    assert back(defaultdict(list, a=[1])) == {"a": [1]}


def test_an_object_of_another_class_is_a_handle_with_its_plain_form_by_the_base_class() -> None:
    class Liar(int):
        def __int__(self) -> int:
            return 42

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert back(Liar(7)) == ({"class": "Liar"}, 7)
    assert back(object()) == ({"class": "object"}, None)


@pytest.mark.parametrize(
    "data",
    [
        [],
        [1],
        ["nothing", 1],
        ["l"],
        ["l", 1],
        ["l", [], []],
        ["i", "0xg"],
        ["i", 12],
        ["f", "1.0"],
        ["T", "exec"],
        ["T", "__loader__x"],
        ["d", [[1]]],
        ["d", [[["l", []], 1]]],
        ["s", [["l", []]]],
        ["b", "0"],
        ["D", "x"],
        ["F", [1, 0]],
        ["date", "2026-99-99"],
        ["g", [1, 2, 0]],
        {"a": 1},
    ],
    ids=repr,
)
def test_what_stands_for_no_value_is_malformed(data: Any) -> None:
    with pytest.raises(Malformed):
        values.decode(data, lambda about, plain: None)


def test_depth_is_bounded() -> None:
    data: Any = 1
    for _ in range(5000):
        data = ["l", [data]]
    with pytest.raises(Malformed):
        values.decode(data, lambda about, plain: None)


@pytest.mark.parametrize("data", [b"", b"{", b"[1] ", b"[1]x", b"nul", b"\xff", b'{"a":}', b"1" * 10000])
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (any of its kinds)
        text.loads(data)
