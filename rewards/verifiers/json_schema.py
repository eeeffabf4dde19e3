"""`json_schema`: the answer is JSON that fits the row's schema.

A schema may refer to nothing outside of itself. Some keywords take long on large answers, so that answers are judged in
processes that can be killed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jsonschema
import referencing

from rewards.contracts import RewardResult, schema_fault, scored
from rewards.verifiers.columns import wrong
from rewards.verifiers.pooled import Pooled
from rewards.verifiers.verifier import Row, RowError

_COLUMNS = ("schema", "json_schema")
_MAX_CHARACTERS = 2_000_000
_MAX_DEPTH = 100
_MAX_ERRORS = 3
_FENCED = re.compile(r"```[A-Za-z]*[ \t]*\n(.*?)\n[ \t]*```", re.S)


def create(*, deadline_s: float, num_workers: int) -> Pooled:
    return Pooled(__name__, check, deadline_s=deadline_s, num_workers=num_workers)


def check(row: Row) -> None:
    """Raises `RowError` if there is no schema, or it is none."""
    _validator(_schema_text(row))


def judge(answer: str, row: Row) -> RewardResult:
    """Whether the answer is JSON that fits `row["schema"]` (or `row["json_schema"]`: an object, or its text).

    The answer is the whole text, or its only fenced block. The part "json" says whether it is JSON at all. If the row
    also has an "answer" that is JSON, the value must be equal to it.

    Raises:
      RowError: there is no schema, or it is none.
    """
    validator = _validator(_schema_text(row))
    try:
        value = read_json(answer)
    except ValueError as error:
        return scored(0.0, {"json": 0.0}, reasons=(f"it is no JSON: {error}",), finding="unparseable")
    errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
    said = tuple(f"{error.json_path[:100]}: {error.message[:200]}" for error in errors[:_MAX_ERRORS])
    if not said and row.get("answer") is not None and not _equals(row["answer"], value):
        said = ("it fits the schema, but is not the expected value",)
    return scored(float(not said), {"json": 1.0}, reasons=said)


def read_json(text: str) -> Any:
    """The JSON of a text, or of its only fenced block.

    Raises:
      ValueError: it is none: a key twice, NaN, text around it, too large or too deep.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, at most {_MAX_CHARACTERS} are read")
    blocks = _FENCED.findall(text)
    bare = blocks[0] if len(blocks) == 1 else text
    try:
        value = json.loads(bare.strip(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _is_deeper(value, _MAX_DEPTH):
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    return value


def _schema_text(row: Row) -> str:
    value = next((row[column] for column in _COLUMNS if row.get(column) is not None), None)
    if isinstance(value, Mapping | bool):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, str):
        return value
    raise wrong("row.schema", value, "a JSON schema")


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    try:
        tree = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise RowError(f"row.schema is no JSON: {error}") from None
    if not isinstance(tree, dict | bool):
        raise wrong("row.schema", tree, "a JSON schema")
    if isinstance(tree, dict) and (fault := schema_fault(tree)):
        raise RowError(f"row.schema is no JSON schema: {fault}")
    kind = jsonschema.validators.validator_for(tree, default=jsonschema.Draft202012Validator)
    return kind(tree, registry=referencing.Registry())


def _equals(expected: Any, value: Any) -> bool:
    """Whether the value is the expected one, which may be given as JSON's text."""
    if same_json(expected, value):
        return True
    try:
        return isinstance(expected, str) and same_json(json.loads(expected), value)
    except (ValueError, RecursionError):
        return False


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(part, depth - 1) for part in parts)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
