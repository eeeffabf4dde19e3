"""Definitions of tools: made of signatures, or given as JSON schema, and refused where they are neither."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from learner_jax.runtime import DoorError
from rewards.contracts import ToolDefinition
from rewards.tools import definition_of, distinct, read_definition


def search(query: str, kind: Literal["news", "books"], limit: int = 3, words: list[str] | None = None) -> str:
    """Looks
    for things.

    More that is not shown."""
    return ""


def test_a_signature_becomes_a_schema() -> None:
    assert definition_of(search, name="search", what="tool").as_chat() == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Looks for things.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "kind": {"enum": ["news", "books"]},
                    "limit": {"type": "integer"},
                    "words": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["query", "kind"],
                "additionalProperties": False,
            },
        },
    }


def _object(value: object) -> str: ...  # type: ignore[empty-body]
def _several(*values: str) -> str: ...  # type: ignore[empty-body]
def _unreadable(value: Missing) -> str: ...  # type: ignore[name-defined, empty-body]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_object, "has a type that JSON schema can't say"),
        (_several, "can't be named in a call"),
        (_unreadable, "annotations can't be read"),
    ],
)
def test_a_signature_that_no_schema_can_say_is_refused(function: Any, said: str) -> None:
    with pytest.raises(DoorError, match=said):
        definition_of(function, name="tool", what="the tool")


GIVEN = {
    "name": "add",
    "description": "Sum.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}


def test_definitions_are_taken_in_both_forms() -> None:
    expected = ToolDefinition("add", "Sum.", GIVEN["parameters"])  # type: ignore[arg-type]
    assert read_definition(GIVEN, what="tool") == expected
    assert read_definition({"type": "function", "function": GIVEN}, what="tool") == expected
    assert read_definition({"name": "get"}, what="tool").parameters == {"type": "object", "properties": {}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "expected an object with name"),
        ({"name": "a b"}, "name is 'a b'"),
        ({"name": "add", "parameters": {"type": "array"}}, "expected a JSON schema of an object"),
        ({"name": "add", "parameters": {"type": "object", "properties": 3}}, "are no JSON schema"),
        ({"name": "add", "parameters": {"properties": {"a": {"type": "number?"}}}}, "are no JSON schema"),
        (
            {"name": "add", "parameters": {"properties": {"a": {"$ref": "http://x/y"}}}},
            "'http://x/y', which is not in it",
        ),
        (
            {"name": "add", "parameters": {"properties": {"a": {"$ref": "#/$defs/b"}}}},
            "'#/$defs/b', which is not in it",
        ),
        (
            {"name": "add", "parameters": {"$defs": {"b": {"$id": "b"}}, "properties": {"a": {"$ref": "b"}}}},
            "only references that begin",
        ),
        ({"name": "add", "parameters": {"$schema": 3}}, r"$schema is 3, expected text"),
        ({"name": "add", "parameters": nested(400)}, "nested too deeply"),
        ({"name": "add", "description": 3}, "description is no text"),
        ({"name": "add", "arguments": {}}, "has 'arguments'"),
    ],
)
def test_what_is_no_definition_says_why(given: Any, said: str) -> None:
    with pytest.raises(DoorError) as caught:
        read_definition(given, what="my_env:tools")
    assert said in str(caught.value)
    assert "my_env:tools" in str(caught.value)


def test_names_are_distinct() -> None:
    tool = read_definition(GIVEN, what="tool")
    with pytest.raises(DoorError, match="two tools called 'add'"):
        distinct([tool, tool], what="settings")
