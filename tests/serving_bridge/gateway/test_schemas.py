"""Bounds on schemas: what patterns expand to, beside strings that were written out, and where patterns are found."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from serving_bridge.gateway.errors import GatewayError
from serving_bridge.gateway.schemas import check_schema, expanded


def grown(draws: random.Random, depth: int) -> tuple[str, str]:
    """A pattern, and the one string that it matches whole."""
    pattern = text = ""
    for _ in range(draws.randint(1, 3)):
        kind = draws.randint(0, 3 if depth else 2)
        if kind == 3:
            inner, inner_text = grown(draws, depth - 1)
            part, part_text = f"({inner})", inner_text
        else:
            part, part_text = [("a", "a"), (r"\.", "."), ("[b]", "b")][kind]
        if draws.random() < 0.5:
            count = draws.randint(1, 4)
            part, part_text = f"{part}{{{count}}}", part_text * count
        pattern, text = pattern + part, text + part_text
    return pattern, text


def test_a_pattern_expands_to_what_it_matches() -> None:
    draws = random.Random(0)
    for _ in range(300):
        pattern, text = grown(draws, depth=3)
        assert re.fullmatch(pattern, text)
        assert expanded(pattern) == len(text), pattern


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("^a+$", 1),
        ("a{2,5}", 5),
        ("a{3,}", 3),
        ("(ab|c){2}", 6),
        (r"[\]{9}]{2}", 2),
        (r"\{9}", 3),
        ("a{x}", 4),
        ("(a{1,9999}){1,9999}", 9999**2),
        ("a)(", 2),
        ("a{99999999999999}", 999_999_999),
    ],
)
def test_a_pattern_expands_to(pattern: str, size: int) -> None:
    assert expanded(pattern) == size


BOMB = "(a{1,999}){1,999}"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": BOMB},
        {"anyOf": [{"items": {"pattern": BOMB}}]},
        {"patternProperties": {BOMB: {}}},
        {"$defs": {"x": {"properties": {"y": {"pattern": BOMB}}}}},
        {"anyOf": [{"pattern": "a{60000}"}, {"pattern": "b{60000}"}]},
        {"description": "x" * 70_000},
    ],
)
def test_large_schemas_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(GatewayError) as refused:
        check_schema(schema, "response_format")
    assert (refused.value.status, refused.value.param) == (400, "response_format")


def test_what_people_write_is_taken() -> None:
    address = r"^[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,125}[A-Za-z]{2,63}$"
    check_schema({"properties": {"email": {"pattern": address}, "pattern": {"type": "string"}}}, "tools")
