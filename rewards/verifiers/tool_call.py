"""`tool_call`: the answer calls the expected tools with the expected arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.contracts import RewardResult, scored
from rewards.verifiers.columns import wrong
from rewards.verifiers.json_schema import same_json
from rewards.verifiers.tool_call_formats import Call, MalformedError, read_calls
from rewards.verifiers.verifier import Plain, Row, RowError

_COLUMNS = ("tool_calls", "expected", "answer")
_MAX_CALLS = 100
_SHOWN = 200


def create(*, deadline_s: float, num_workers: int) -> Plain:
    return Plain(judge)


def judge(answer: str, row: Row) -> RewardResult:
    """Whether the answer's calls are those of `row["tool_calls"]` (or "expected", or "answer"): names and arguments.

    Expected calls are objects with "name" and "arguments", or OpenAI's with "function"; one, a list, or the JSON of
    either. An empty list asks for an answer without a call. They must come in this order, unless `row["order_free"]`.
    Parts: whether the calls can be "parsed", and the shares of "names" and whole "calls" that are right.

    Raises:
      RowError: the row has no expected calls, or they are not understood.
    """
    expected = _expected(row)
    try:
        found: list[Call | None] = list(read_calls(answer))
    except MalformedError as error:
        parts = {"parsed": 0.0, "names": 0.0, "calls": 0.0}
        return scored(0.0, parts, reasons=(f"malformed call: {error}",), finding="unparseable")
    if row.get("order_free"):
        found = _arranged(found, expected)
    size = max(len(expected), len(found), 1)
    pairs = list(zip(found, expected, strict=False))
    names = sum(one is not None and one.name == other.name for one, other in pairs)
    calls = sum(one is not None and _same(one, other) for one, other in pairs)
    is_right = calls == len(expected) == len(found)
    parts = {"parsed": 1.0, "names": names / size, "calls": calls / size}
    if not expected and not found:
        parts = dict.fromkeys(parts, 1.0)
    reason = f"expected {_shown(expected)}, found {_shown([call for call in found if call is not None])}"
    return scored(float(is_right), parts, reasons=(reason,))


def _expected(row: Row) -> list[Call]:
    value = next((row[column] for column in _COLUMNS if row.get(column) is not None), None)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"row.tool_calls is no JSON: {error}") from None
    items = [value] if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple) or len(items) > _MAX_CALLS:
        raise wrong("row.tool_calls", value, 'calls such as {"name": ..., "arguments": {...}}')
    return [_call(item) for item in items]


def _call(item: Any) -> Call:
    function = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise wrong("row.tool_calls", item, 'a call such as {"name": ..., "arguments": {...}}')
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = 0
    if not isinstance(arguments, Mapping | None):
        raise wrong("row.tool_calls", item, "arguments that are an object")
    return Call(function["name"], arguments or {})


def _same(found: Call, expected: Call) -> bool:
    if found.name != expected.name or found.arguments.keys() != expected.arguments.keys():
        return False
    return all(_same_value(value, expected.arguments[key], found.is_text) for key, value in found.arguments.items())


def _same_value(found: Any, expected: Any, is_text: bool) -> bool:
    """Whether an argument is the expected one; formats without types write every value as text."""
    if same_json(expected, found):
        return True
    if not is_text or isinstance(expected, str):
        return False
    try:
        return same_json(expected, json.loads(found))
    except (ValueError, RecursionError):
        return isinstance(expected, bool) and found.lower() == str(expected).lower()


def _arranged(found: Sequence[Call | None], expected: Sequence[Call]) -> list[Call | None]:
    """The calls in the order of the expected ones that they equal; the others fill the gaps."""
    left = list(found)
    placed: list[Call | None] = []
    for wanted in expected:
        index = next((i for i, call in enumerate(left) if call is not None and _same(call, wanted)), None)
        placed.append(None if index is None else left.pop(index))
    rest = iter(left)
    filled = [next(rest, None) if call is None else call for call in placed]
    return [*filled, *rest]


def _shown(calls: Sequence[Call]) -> str:
    said = [f"{call.name}({json.dumps(dict(call.arguments))})" for call in calls]
    return (", ".join(said) or "no call")[:_SHOWN]
