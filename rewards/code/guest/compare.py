"""Whether a result is what a case expects, where the case is data and no code."""

from __future__ import annotations

import math

from rewards.code.guest.remote import Remote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RELATIVE, _ABSOLUTE = 1e-6, 1e-9
_MAX_DEPTH = 100
_MAX_SHOWN = 60


def same_value(got: Any, expected: Any, depth: int = 0) -> bool:
    """Equal as JSON would have it: a tuple equals a list, floats may differ in the seventh digit, True is not 1."""
    if depth > _MAX_DEPTH or isinstance(got, Remote):
        return False
    if isinstance(expected, bool) or isinstance(got, bool):
        return isinstance(expected, bool) and isinstance(got, bool) and got == expected
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(got, (list, tuple))
            and len(got) == len(expected)
            and all(same_value(one, other, depth + 1) for one, other in zip(got, expected, strict=True))
        )
    if isinstance(expected, dict):
        return isinstance(got, dict) and _same_mapping(got, expected, depth)
    if isinstance(expected, float) or (isinstance(got, float) and isinstance(expected, int)):
        return _same_number(got, expected)
    return type(got) is type(expected) and bool(got == expected)


def _same_mapping(got: dict[Any, Any], expected: dict[str, Any], depth: int) -> bool:
    keys = {key if isinstance(key, str) else str(key): item for key, item in got.items()}
    return (
        len(keys) == len(got)
        and keys.keys() == expected.keys()
        and all(same_value(keys[key], item, depth + 1) for key, item in expected.items())
    )


def _same_number(got: Any, expected: Any) -> bool:
    if not isinstance(got, (int, float)):
        return False
    if got == expected:
        return True
    try:
        both_nan = math.isnan(got) and math.isnan(expected)
        return both_nan or math.isclose(got, expected, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    except OverflowError:
        return False


def same_output(got: str, expected: str) -> str:
    """Empty where a program printed what it should: lines less the blanks at their ends, numbers as numbers."""
    lines, wanted = _lines(got), _lines(expected)
    for index, line in enumerate(wanted):
        if index >= len(lines):
            return f"line {index + 1} is missing, expected {line[:_MAX_SHOWN]!r}"
        if lines[index] != line and not _same_words(lines[index].split(), line.split()):
            return f"line {index + 1} is {lines[index][:_MAX_SHOWN]!r}, expected {line[:_MAX_SHOWN]!r}"
    return "" if len(lines) == len(wanted) else f"{len(lines)} lines, expected {len(wanted)}"


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_words(got: list[str], expected: list[str]) -> bool:
    return len(got) == len(expected) and all(
        one == other or _same_word(one, other) for one, other in zip(got, expected, strict=True)
    )


def _same_word(got: str, expected: str) -> bool:
    """Decimal fractions may differ in the seventh digit."""
    if "." not in expected or "_" in got or "_" in expected:
        return False
    try:
        return _same_number(float(got), float(expected)) and math.isfinite(float(got))
    except ValueError:
        return False
