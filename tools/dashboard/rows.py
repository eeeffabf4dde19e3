"""A series of figures of bounded size: neighbours are averaged once there are too many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

#: Names of one table at most, beyond which new ones are left out: they may come from a user's own reward.
MAX_NAMES = 64
#: Workers that a row counts at most.
_MAX_WORKERS = 1024


@dataclass(slots=True)
class Figure:
    """One figure within a row."""

    count: int
    total: float
    low: float
    high: float

    def take(self, value: float) -> None:
        """Adds one more value."""
        self.count += 1
        self.total += value
        if value < self.low:
            self.low = value
        elif value > self.high:
            self.high = value

    def add(self, other: Figure) -> None:
        """Adds the values of another."""
        self.count += other.count
        self.total += other.total
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    @property
    def mean(self) -> float:
        return self.total / self.count


@dataclass(slots=True)
class Row:
    """What lies within one interval of x.

    Attributes:
      first, last: the smallest and the largest x.
      t: seconds of the run at `last`.
      serial: when it last changed, see `Rows.serial`.
      workers: processes that wrote it.
    """

    first: float
    last: float
    t: float
    serial: int
    figures: dict[str, Figure] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)

    def merge(self, other: Row) -> None:
        """Takes in the row that comes after this one."""
        self.last, self.t = max(self.last, other.last), max(self.t, other.t)
        self.serial = max(self.serial, other.serial)
        for name, figure in other.figures.items():
            if name in self.figures:
                self.figures[name].add(figure)
            else:
                self.figures[name] = figure
        self.workers |= set(list(other.workers)[: _MAX_WORKERS - len(self.workers)])

    def total(self, name: str) -> float | None:
        return self.figures[name].total if name in self.figures else None


class Rows:
    """Figures over x in at most `capacity` rows, of equal and as small widths as fit.

    Attributes:
      width: of a row, in x; begins with `width` and doubles.
      last: the largest x.
      serial: rises with every change; rows above a reader's serial are new to it.
      generation: rises when rows that a reader has are gone.
    """

    def __init__(self, *, capacity: int = 1024, width: float = 1.0) -> None:
        self._capacity = capacity
        self._rows: dict[int, Row] = {}
        self._names: set[str] = set()
        self.width = width
        self.last: float | None = None
        self.serial = 0
        self.generation = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, x: Any, t: float, figures: Mapping[str, Any], *, worker: str = "") -> None:
        """Adds what was measured at x; what is no finite number is left out."""
        if not is_number(x):
            return
        self.serial += 1
        self.last = x if self.last is None else max(self.last, x)
        index = math.floor(x / self.width)
        row = self._rows.get(index)
        if row is None:
            row = self._rows[index] = Row(x, x, t, self.serial)
        else:
            row.first, row.last, row.t = min(row.first, x), max(row.last, x), max(row.t, t)
            row.serial = self.serial
        kept = row.figures
        for name, value in figures.items():
            if not is_number(value):
                continue
            if name in kept:
                kept[name].take(value)
            elif self._knows(name):
                kept[name] = Figure(1, value, value, value)
        if worker and len(row.workers) < _MAX_WORKERS:
            row.workers.add(worker)
        while len(self._rows) > self._capacity:
            self._halve()

    def drop_from(self, x: float) -> None:
        """Takes away rows that reach to x or beyond, as a run does that goes back to a checkpoint."""
        gone = [index for index, row in self._rows.items() if row.last >= x]
        for index in gone:
            del self._rows[index]
        if gone:
            self.serial += 1
            self.generation += 1
            self.last = max((row.last for row in self._rows.values()), default=None)

    def since(self, serial: int) -> list[Row]:
        """Rows that changed after `serial`, by x."""
        return sorted((row for row in self._rows.values() if row.serial > serial), key=lambda row: row.first)

    @property
    def names(self) -> Iterable[str]:
        """Of all figures, in order."""
        return sorted(self._names)

    def _knows(self, name: str) -> bool:
        if name not in self._names and len(self._names) < MAX_NAMES:
            self._names.add(name)
        return name in self._names

    def _halve(self) -> None:
        self.width *= 2
        rows, self._rows = self.since(-1), {}
        for row in rows:
            index = math.floor(row.first / self.width)
            if index in self._rows:
                self._rows[index].merge(row)
            else:
                self._rows[index] = row
        self.generation += 1


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, and no truth value."""
    return type(value) in (int, float) and abs(value) < 1e300
