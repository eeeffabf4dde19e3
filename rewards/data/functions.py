"""Rows that a user's function gives: it is called once, and what it gives is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from learner_jax.runtime import Door, WeirError, raised
from rewards.contracts import TaskError
from rewards.data.source import Row
from rewards.sandbox import to_json

DATA = Door(kind="data", setting="task.data")


class FunctionRows:
    """The first rows of a function, in memory.

    Raises:
      DoorError: there is no such function, or it can't be called with these options.
      TaskError: it raises.
    """

    def __init__(self, name: str, options: Mapping[str, Any], *, setting: str, most: int) -> None:
        self.name, self.origin = name, f"{setting} {name!r}"
        function = replace(DATA, setting=setting).with_keywords(*options).open(name)
        try:
            self._rows = list(islice(function(**options), most))
        except WeirError:
            raise
        except Exception as error:
            raise TaskError(f"{self.origin} gave no rows: {raised(error)}") from error

    @property
    def identity(self) -> Mapping[str, Any] | None:
        return None

    def scan(self) -> Iterator[Row]:
        for place in range(len(self._rows)):
            where = f"{self.origin}, row {place + 1}"
            columns = self._rows[place]
            if not isinstance(columns, dict) or not all(type(key) is str for key in columns):
                raise TaskError(f"{where} is a {type(columns).__name__}, expected a dict with names of columns")
            try:
                to_json(columns)
            except TypeError as error:
                raise TaskError(f"{where} can't be handed to other processes: {error}") from None
            yield Row(where, place + 1, place, place + 1, columns)

    def row(self, place: int, end: int) -> dict[str, Any]:
        columns: dict[str, Any] = self._rows[place]
        return columns

    def close(self) -> None:
        """Nothing to let go of."""
