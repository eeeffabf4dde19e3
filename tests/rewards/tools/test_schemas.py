"""Schemas of tools say of arguments what jsonschema says, and no pattern of theirs hangs the worker."""

from __future__ import annotations

import time
from typing import Any

import jsonschema
import pytest

from learner_jax.runtime import DoorError
from rewards.tools import read_definition
from rewards.tools.schemas import validator_of
from rewards.tools.toolbox import Arguments

HARD = "a" * 40 + "!"
EVIL = "^(a|a)*$"
SCHEMAS: list[dict[str, Any]] = [
    {"properties": {"x": {"pattern": "^[a-z]+$"}}},
    {"patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
    {
        "properties": {"x": {}},
        "patternProperties": {"^n_": {"type": "integer"}},
        "additionalProperties": {"type": "null"},
    },
    {"properties": {"x": {"type": "string"}}, "additionalProperties": False},
    {"additionalProperties": {"type": "string", "pattern": "b"}},
    {"properties": {"x": {"anyOf": [{"pattern": "^a"}, {"type": "integer"}]}}, "additionalProperties": True},
    {"items": {"pattern": "a"}, "pattern": "a"},
]
VALUES: list[Any] = [
    {}, {"x": "abc"}, {"x": "ABC"}, {"x": 3}, {"n_1": 1}, {"n_1": "1"}, {"y": None}, {"y": "abc"}, {"x": "b", "y": "x"},
    ["a"], ["b"], "b", 3,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_it_says_what_jsonschema_says(number: int) -> None:
    schema = SCHEMAS[number]
    plain = jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        expected = [list(error.absolute_path) for error in plain.iter_errors(value)]
        assert [list(error.absolute_path) for error in validator_of(schema).iter_errors(value)] == expected, value


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"x": {"pattern": EVIL}}}, {"x": HARD}),
        ({"patternProperties": {EVIL: {}}}, {HARD: 1}),
        ({"patternProperties": {EVIL: {}}, "additionalProperties": False}, {HARD: 1}),
        ({"additionalProperties": False, "patternProperties": {EVIL: {}}}, {HARD: 1}),
    ],
)
def test_a_pattern_that_never_ends_is_a_complaint_at_once(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    tool = read_definition({"name": "t", "parameters": {"type": "object", **schema}}, what="tool")
    begin = time.process_time()
    said = Arguments(tool).complaint(arguments)
    assert "took longer than 0.05 s" in said
    assert time.process_time() - begin < 5


def test_a_keyword_that_can_not_be_bounded_is_refused_at_the_start() -> None:
    schema = {"type": "object", "patternProperties": {EVIL: {}}, "allOf": [{"unevaluatedProperties": False}]}
    with pytest.raises(DoorError, match="unevaluatedProperties"):
        read_definition({"name": "t", "parameters": schema}, what="tool")
    read_definition({"name": "t", "parameters": {"unevaluatedProperties": False}}, what="tool")


@pytest.mark.parametrize("schema", [{"properties": {"x": {"pattern": "("}}}, {"patternProperties": {"[": {}}}])
def test_a_pattern_that_is_none_is_refused_at_the_start(schema: dict[str, Any]) -> None:
    with pytest.raises(DoorError, match="no JSON schema"):
        read_definition({"name": "t", "parameters": schema}, what="tool")
