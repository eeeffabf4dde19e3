"""Columns of a row as a verifier wants them, or a clear word about what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rewards.verifiers.verifier import RowError

_MAX_SHOWN = 100


def text(row: Mapping[str, Any], column: str = "answer") -> str:
    """A text or a number as text: `18.0` gives "18.0".

    Raises:
      RowError: the column is missing, or holds something else.
    """
    return as_text(_value(row, column), f"row.{column}")


def texts(row: Mapping[str, Any], column: str = "answer") -> list[str]:
    """The text or number of a column, or those of the list that it holds; at least one.

    Raises:
      RowError: the column is missing, or holds something else.
    """
    value = _value(row, column)
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise RowError(f"row.{column} is an empty list")
    return [as_text(item, f"row.{column}") for item in items]


def number(row: Mapping[str, Any], column: str, default: float) -> float:
    """A finite number, `default` where the column is missing or null.

    Raises:
      RowError: it holds something else.
    """
    value = row.get(column)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong(f"row.{column}", value, "a number")
    return float(value)


def as_text(value: Any, what: str) -> str:
    """A text, a number or a truth value as text.

    Raises:
      RowError: it is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and math.isfinite(value):
        return str(value)
    raise wrong(what, value, "text or a number")


def wrong(what: str, value: Any, expected: str) -> RowError:
    """The error for a value that is not what was expected."""
    shown = repr(value)[:_MAX_SHOWN]
    return RowError(f"{what} is {shown}, expected {expected}")


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        known = f"only {', '.join(map(repr, row))[:_MAX_SHOWN]}" if row else "and no other column"
        raise RowError(f"the row has no {column!r}, {known}")
    if row[column] is None:
        raise RowError(f"row.{column} is null, expected text or a number")
    return row[column]
