"""Drift of what users get: each day's means of the stable arm's answers, added up from observations as they come."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serving_bridge.canary import MEASURES, ObservationLog
from serving_bridge.database import DatabaseError

#: Rows that one look reads at most, and seconds between two looks: pages are read once a second by each reader.
_ROWS, _EVERY_S = 50_000, 5.0
_DAYS, _METRICS = 14, 20
_DAY_S = 86_400


@dataclass
class _Sums:
    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        self.total += value
        self.squares += value * value

    def shown(self) -> dict[str, float]:
        """Mean and half of its 95% interval, as if answers were independent."""
        mean = self.total / self.n
        variance = max(self.squares / self.n - mean * mean, 0.0)
        return {"n": self.n, "mean": mean, "half": 1.96 * math.sqrt(variance / self.n)}


@dataclass
class _Day:
    metrics: dict[str, _Sums] = field(default_factory=dict)
    versions: set[int] = field(default_factory=set)


class Drift:
    """Adds up the stable arm's answers by day; reads what is new, and a bounded part of it at a time.

    Args:
      clock: monotonic seconds.
    """

    def __init__(
        self, log: ObservationLog, namespace: str, *, clock: Callable[[], float] = time.monotonic, rows: int = _ROWS
    ) -> None:
        self._log, self._namespace, self._clock, self._rows = log, namespace, clock, rows
        self._lock = threading.Lock()
        self._until, self._next_s, self._is_behind = 0, float("-inf"), False
        self._days: dict[int, _Day] = {}

    def shown(self) -> dict[str, Any]:
        """Days, oldest first, with the mean of each metric; whether there is more to read yet.

        A database that can't be read leaves what was read before.
        """
        with self._lock:
            if self._clock() >= self._next_s:
                self._read()
                self._next_s = self._clock() + (0.0 if self._is_behind else _EVERY_S)
            days = [
                {
                    "at_s": number * _DAY_S,
                    "versions": sorted(day.versions)[-3:],
                    "metrics": {name: sums.shown() for name, sums in sorted(day.metrics.items())},
                }
                for number, day in sorted(self._days.items())
            ]
            return {"days": days, "is_behind": self._is_behind}

    def _read(self) -> None:
        try:
            rows = self._log.timed_after(self._namespace, self._until, limit=self._rows)
        except DatabaseError:
            return
        self._is_behind = len(rows) == self._rows
        for sequence, at_s, arm, version, is_shadow, measures in rows:
            self._until = sequence
            if arm != "stable" or is_shadow:
                continue
            day = self._days.setdefault(int(at_s // _DAY_S), _Day())
            if version >= 0:
                day.versions.add(version)
            for name, value in measures.items():
                if name in day.metrics or len(day.metrics) < _METRICS or name in MEASURES:
                    day.metrics.setdefault(name, _Sums()).add(value)
        for old in sorted(self._days)[:-_DAYS]:
            del self._days[old]
