"""Who gives way when the engines are under pressure: classes close one by one, and open again with hysteresis."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from serving_bridge.settings import PRIORITIES, Priority


@dataclass(frozen=True)
class Threshold:
    """A class is closed from these values on, and open again below the lower ones.

    Attributes:
      kv: part of the KV cache in use, 0 to 1.
      queue_s: how long requests waited in the engines of late.
    """

    kv: float
    queue_s: float
    kv_open: float
    queue_open_s: float


#: Free users give way at 85% of the KV cache, after training and evaluation and before those who pay.
THRESHOLDS: Mapping[Priority, Threshold] = {
    "training": Threshold(0.70, 1.0, 0.60, 0.5),
    "evaluation": Threshold(0.80, 2.0, 0.70, 1.0),
    "free": Threshold(0.85, 5.0, 0.78, 2.5),
    "paid": Threshold(0.97, 30.0, 0.92, 15.0),
}


@dataclass
class Pressure:
    """The engines' pressure as last measured, and which classes are closed by it.

    Args:
      stale_s: a measurement that is older says nothing, and closes nobody.
      clock: monotonic, in seconds.
    """

    thresholds: Mapping[Priority, Threshold] = field(default_factory=lambda: THRESHOLDS)
    stale_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _closed: set[Priority] = field(default_factory=set)
    _measured_s: float = -math.inf
    _retry_s: float = 1.0

    def measured(self, *, kv: float, queue_s: float) -> bool:
        """Takes over a measurement, unless it is no number; whether a class that was closed is open now."""
        if not (math.isfinite(kv) and math.isfinite(queue_s)):
            return False
        now, before = self.clock(), set(self._closed)
        for priority, threshold in self.thresholds.items():
            if kv >= threshold.kv or queue_s >= threshold.queue_s:
                self._closed.add(priority)
            elif kv < threshold.kv_open and queue_s < threshold.queue_open_s:
                self._closed.discard(priority)
        self._retry_s = max(1.0, queue_s)
        self._measured_s = now
        return bool(before - self._closed)

    def is_open(self, priority: Priority) -> bool:
        """Whether requests of a class are served."""
        return priority not in self._closed or self.clock() - self._measured_s > self.stale_s

    @property
    def retry_after_s(self) -> float:
        """When a class may be open again: as long as requests wait in the engines, at least a second."""
        return self._retry_s

    def closed(self) -> tuple[Priority, ...]:
        """The classes that give way."""
        return tuple(priority for priority in PRIORITIES if not self.is_open(priority))
