"""Tools as the policy is told of them: names, descriptions and JSON schemas, checked before anything starts."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from learner_jax.runtime import DoorError, Pattern, PatternError
from rewards.contracts import ToolDefinition, schema_fault

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_DESCRIPTION = 4000
_SIMPLE: Mapping[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


def read_definition(given: Any, *, what: str) -> ToolDefinition:
    """A definition as OpenAI's chat API has it, or its inner part.

    Args:
      what: names the definition in errors.

    Raises:
      DoorError: it is something else, or its parameters are no JSON schema of an object.
    """
    if isinstance(given, ToolDefinition):
        given = given.as_chat()
    function = given.get("function") if isinstance(given, Mapping) and given.get("type") == "function" else given
    if not isinstance(function, Mapping):
        raise DoorError(f"{what} is {given!r:.100}, expected an object with name, description and parameters")
    if unknown := sorted(map(str, set(function) - {"name", "description", "parameters", "strict"})):
        raise DoorError(f"{what} has {unknown[0]!r}, expected name, description and parameters")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DoorError(f"{what}: name is {name!r:.100}, expected letters, digits, _ and -, at most 64")
    description = function.get("description", "")
    if not isinstance(description, str) or len(description) > _MAX_DESCRIPTION:
        raise DoorError(f"{what} {name!r}: description is no text of at most {_MAX_DESCRIPTION} characters")
    parameters = function.get("parameters", {"type": "object", "properties": {}})
    _check_schema(parameters, f"{what} {name!r}")
    return ToolDefinition(name, description, parameters)


def definition_of(
    function: Callable[..., Any], *, name: str, what: str, skip: int = 0, hidden: Collection[str] = ()
) -> ToolDefinition:
    """The definition of a Python function, from its signature and the first paragraph of its docstring.

    Args:
      skip: leading arguments that the policy does not give.
      hidden: names of others that it does not give.

    Raises:
      DoorError: an argument has no annotation that JSON schema can say.
    """
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # annotations are code
        raise DoorError(f"{what} {name!r}: its annotations can't be read: {type(error).__name__}: {error}") from error
    properties: dict[str, Any] = {}
    required: list[str] = []
    for argument in list(inspect.signature(function).parameters.values())[skip:]:
        if argument.name in hidden:
            continue
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD, argument.POSITIONAL_ONLY):
            raise DoorError(f"{what} {name!r}: argument {argument} can't be named in a call; give it a name of its own")
        schema = _schema_of(hints.get(argument.name, str))
        if schema is None:
            raise DoorError(
                f"{what} {name!r}: argument {argument} has a type that JSON schema can't say, expected str, int, "
                f"float, bool, a list of these, dict, Literal or Optional; or give a definition with parameters"
            )
        properties[argument.name] = schema
        if argument.default is argument.empty:
            required.append(argument.name)
    doc = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return read_definition({"name": name, "description": doc, "parameters": parameters}, what=what)


def distinct(definitions: Sequence[ToolDefinition], *, what: str) -> tuple[ToolDefinition, ...]:
    """The definitions.

    Raises:
      DoorError: two have the same name.
    """
    names = [definition.name for definition in definitions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DoorError(f"{what} has two tools called {twice[0]!r}")
    return tuple(definitions)


def _check_schema(schema: Any, what: str) -> None:
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise DoorError(f"{what}: parameters are {schema!r:.100}, expected a JSON schema of an object")
    if fault := schema_fault(schema):
        raise DoorError(f"{what}: parameters are no JSON schema: {fault}")
    if reference := _outside_reference(schema):  # after the check: what it takes is not nested deeply
        raise DoorError(
            f"{what}: parameters refer to {reference!r:.100}; only references that begin with # are followed"
        )
    if {"unevaluatedProperties", "patternProperties"} <= set(_keywords(schema)):
        raise DoorError(
            f"{what}: parameters have unevaluatedProperties and patternProperties, which together can't be checked in "
            f"a bounded time: use additionalProperties"
        )
    for pattern in _patterns(schema):
        try:
            Pattern(pattern)
        except PatternError as error:
            raise DoorError(f"{what}: parameters are no JSON schema: {error}") from None


def _keywords(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        yield from map(str, schema)
    for part in _parts(schema):
        yield from _keywords(part)


def _patterns(schema: Any) -> Iterator[str]:
    """Regular expressions that a schema searches for."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        if isinstance(schema.get("patternProperties"), Mapping):
            yield from schema["patternProperties"]
    for part in _parts(schema):
        yield from _patterns(part)


def _parts(schema: Any) -> Sequence[Any]:
    if isinstance(schema, Mapping):
        return list(schema.values())
    return schema if isinstance(schema, list | tuple) else ()


def _outside_reference(schema: Any) -> str:
    """A reference that leaves the schema, which a validator would fetch."""
    if isinstance(schema, Mapping):
        for key in ("$ref", "$dynamicRef"):
            if key in schema and not str(schema[key]).startswith("#"):
                return str(schema[key])
        return next((found for part in schema.values() if (found := _outside_reference(part))), "")
    if isinstance(schema, list | tuple):
        return next((found for part in schema if (found := _outside_reference(part))), "")
    return ""


def _schema_of(hint: Any) -> dict[str, Any] | None:
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is list or origin in (list, Sequence):
        items = _schema_of(arguments[0]) if arguments else {}
        return None if items is None else {"type": "array", "items": items}
    if origin is dict:
        return {"type": "object"}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        known = [_schema_of(part) for part in arguments if part is not type(None)]
        if len(known) == 1:
            return known[0]
    return None
