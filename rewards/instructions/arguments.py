"""Arguments of an instruction, checked: each has a type, and a wrong one is told by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learner_jax.runtime import WeirError

_RELATIONS = ("at least", "less than")
_MAX_ITEMS = 1000


class InstructionError(WeirError, ValueError):
    """An instruction can't be checked: its kind is unknown, or an argument is missing or wrong."""


class Arguments:
    """The arguments of one instruction. Every method raises `InstructionError` for one that is missing or wrong."""

    def __init__(self, kind: str, given: Mapping[str, Any]) -> None:
        self._kind = kind
        self._given = given

    def text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(name, value, "text")
        return value

    def texts(self, name: str) -> list[str]:
        value = self._value(name)
        if not isinstance(value, list | tuple) or not 0 < len(value) <= _MAX_ITEMS:
            raise self._wrong(name, value, "a list of texts")
        if not all(isinstance(item, str) and item.strip() for item in value):
            raise self._wrong(name, value, "a list of texts")
        return list(value)

    def count(self, name: str, *, least: int = 0) -> int:
        """A whole number; those of tables are often floats, such as 3.0."""
        value = self._value(name)
        is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        if not is_whole or not least <= value <= 10**9:
            raise self._wrong(name, value, f"a whole number from {least} on")
        return int(value)

    def holds(self, relation: str, number: int, threshold: str) -> bool:
        """Whether a number is in the relation that is named to the threshold that is named."""
        said = self._value(relation)
        if said not in _RELATIONS:
            raise self._wrong(relation, said, " or ".join(map(repr, _RELATIONS)))
        wanted = self.count(threshold)
        return number >= wanted if said == "at least" else number < wanted

    def _value(self, name: str) -> Any:
        if self._given.get(name) is None:
            raise InstructionError(f"{self._kind} has no argument {name!r}")
        return self._given[name]

    def _wrong(self, name: str, value: Any, expected: str) -> InstructionError:
        return InstructionError(f"{self._kind}: {name} is {value!r:.100}, expected {expected}")
