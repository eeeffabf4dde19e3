"""Ways to damage a record: by field of its decoded form, by shape of any value, by bytes of its encoded form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Rng = np.random.Generator
Value = Any

#: what a number may be replaced with
_NUMBERS = (-1, 0, 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, -(2**63), 2**64 - 1, 0.5, 1e308, -1e308, 1e-320)
_NOT_NUMBERS = (float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "\0", "💥", "../../etc/passwd", "x" * 5000, "run/0", "None", "-1", "1e400")
_OTHERS: tuple[Value, ...] = (None, True, [], {}, [[]], {"": None}, b"", b"\xff\xfe")


def damaged_bytes(rng: Rng, payload: bytes) -> bytes:
    """Truncated, with flipped bits, with a piece doubled, cut out, zeroed or of another record, or pure noise."""
    if not payload:
        return rng.bytes(8)
    a, b = sorted(rng.integers(0, len(payload) + 1, 2).tolist())
    match rng.integers(7):
        case 0:
            return payload[:a]
        case 1:
            damaged = bytearray(payload)
            for position in rng.integers(0, len(payload), rng.integers(1, 9)).tolist():
                damaged[position] ^= int(rng.integers(1, 256))
            return bytes(damaged)
        case 2:
            return payload[:b] + payload[a:]
        case 3:
            return payload[:a] + payload[b:]
        case 4:
            return payload[:a] + bytes(b - a) + payload[b:]
        case 5:
            return rng.bytes(int(rng.integers(1, 2 * len(payload) + 1)))
        case _:
            return payload + rng.bytes(int(rng.integers(1, 64)))


def damaged_value(rng: Rng, value: Value, *, non_finite: bool) -> Value:
    """Something else in a value's place: of the same type, nearly the same, or of another type.

    Args:
      non_finite: whether NaN and infinities may come; JSON has none.
    """
    if rng.random() < 0.3:
        return _OTHERS[rng.integers(len(_OTHERS) - (0 if non_finite else 2))]
    match value:
        case bool():
            return not value
        case int() | float():
            numbers = _NUMBERS + _NOT_NUMBERS if non_finite else _NUMBERS
            return numbers[rng.integers(len(numbers))]
        case str():
            return _TEXTS[rng.integers(len(_TEXTS))]
        case bytes():
            return damaged_bytes(rng, value)
        case list() if value and rng.random() < 0.7:
            return _damaged_list(rng, value, non_finite)
        case dict() if value and rng.random() < 0.7:
            return damaged_field(rng, value, non_finite=non_finite)
        case _:
            return _OTHERS[rng.integers(len(_OTHERS) - (0 if non_finite else 2))]


def damaged_field(rng: Rng, record: Mapping[str, Value], *, non_finite: bool) -> dict[str, Value]:
    """A record without a field, with one more, with one damaged, or with two exchanged."""
    damaged = dict(record)
    keys = list(damaged)
    key = keys[rng.integers(len(keys))]
    match rng.integers(8):
        case 0:
            del damaged[key]
        case 1:
            damaged["colour"] = "red"
        case 2:
            other = keys[rng.integers(len(keys))]
            damaged[key], damaged[other] = damaged[other], damaged[key]
        case _:
            damaged[key] = damaged_value(rng, damaged[key], non_finite=non_finite)
    return damaged


def _damaged_list(rng: Rng, values: list[Value], non_finite: bool) -> list[Value]:
    place = int(rng.integers(len(values)))
    match rng.integers(5):
        case 0:
            return values[:place] + values[place + 1 :]
        case 1:
            return [*values, values[place]]
        case 2:
            return values[::-1]
        case 3:
            return []
        case _:
            return [*values[:place], damaged_value(rng, values[place], non_finite=non_finite), *values[place + 1 :]]


Mutation = Callable[[Rng, list[dict[str, Value]]], list[dict[str, Value]]]


def one_record(change: Callable[[Rng, dict[str, Value]], None]) -> Mutation:
    """A mutation that changes one record of a group in place of a copy."""

    def mutation(rng: Rng, group: list[dict[str, Value]]) -> list[dict[str, Value]]:
        group = [dict(record) for record in group]
        change(rng, group[rng.integers(len(group))])
        return group

    return mutation
