"""How much of the machine programs take that are no part of a benchmark: what they take, its sides can't have."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


class Bystanders:
    """Counts from its making on.

    Args:
      busy_s: CPU seconds that all programs of the machine have taken so far.
      own_s: those of this program, and of all that it started.
    """

    def __init__(
        self,
        busy_s: Callable[[], float] | None = None,
        own_s: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._busy_s, self._own_s, self._clock = busy_s or machine_cpu, own_s or own_cpu, clock
        self._began = self._now()

    def cores(self) -> float:
        """Cores that the others had, on average."""
        wall_s, busy_s, own_s = (now - began for now, began in zip(self._now(), self._began, strict=True))
        return max(0.0, busy_s - own_s) / wall_s if wall_s > 0 else 0.0

    def _now(self) -> tuple[float, float, float]:
        return self._clock(), self._busy_s(), self._own_s()


def machine_cpu(core: int | None = None) -> float:
    """CPU seconds of all programs and of the system itself since its start, on one core or on all."""
    times = psutil.cpu_times() if core is None else psutil.cpu_times(percpu=True)[core]
    names = ("user", "nice", "system", "irq", "softirq")
    return sum(float(getattr(times, name, 0.0)) for name in names)


def own_cpu(*roots: psutil.Process) -> float:
    """CPU seconds of processes, by default of this one, and of all that descend from them, ended ones included."""
    found = {each for root in roots or (psutil.Process(),) for each in (root, *root.children(recursive=True))}
    total = 0.0
    for process in found:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue  # it is among the ended children of its parent from the next look on
    return total
