"""When training is held in a simulated run, drawn from the seed; what a learner may still do meanwhile is checked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from tools.testing.simulate.loop import Process
from tools.testing.simulate.violations import Violations

#: Seconds of virtual time: the last hold is over well before a run must have finished.
_FIRST_S, _LAST_S, _LONGEST_S = 0.3, 5.0, 3.0


class Holds:
    """Times at which training is held, in one seed of two.

    Args:
      clock: virtual seconds.
    """

    def __init__(self, seed: int, violations: Violations, clock: Callable[[], float]) -> None:
        draws = random.Random(f"holds {seed}")  # its own, so that the rest of a seed stays as it is
        starts = [draws.uniform(_FIRST_S, _LAST_S) for _ in range(draws.choice((0, 0, 1, 2)))]
        self._times = [(start, start + draws.uniform(0.1, _LONGEST_S)) for start in starts]
        self._violations, self._clock = violations, clock
        self._done: Counter[tuple[int, str, Process]] = Counter()

    def reason(self) -> str | None:
        """Why training must wait now, as a learner is told it."""
        return None if self._now() is None else "rolled back"

    def seen(self, what: str, process: Process) -> None:
        """A life of the learner trains, or claims a version: once in a hold it may end what it had begun."""
        number = self._now()
        if number is None:
            return
        self._done[number, what, process] += 1
        often = self._done[number, what, process]
        self._violations.require(often < 2, "training while held", f"{process.name} {what} {often} times")

    def _now(self) -> int | None:
        now = self._clock()
        return next((number for number, (first, last) in enumerate(self._times) if first <= now < last), None)
