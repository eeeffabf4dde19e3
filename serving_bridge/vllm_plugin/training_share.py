"""How many training answers an engine samples beside users': as many as lengthen the users' tokens by a set share.

An engine's step gives each of its answers one token, so whatever else is in the step makes users wait. What it costs
depends on model and device, so it is measured: steps of users alone take turns with steps that training is in.

Additive increase, multiplicative decrease, begun by doubling, as in `serving_bridge.routing.concurrency`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from statistics import fmean, median

_DECREASE = 0.7
#: of every so many steps with users, so many are users' alone
_TURN, _ALONE = 32, 8
#: steps that are looked at together, before the limit changes
_LOOK = 32
#: looks after which a limit that was cut before grows, and by which part: a trial of too much is no common state
_PATIENCE, _INCREASE = 4, 1 / 8
#: steps of users alone that are remembered
_REMEMBERED = 64
#: A step that takes longer than so many usual ones was held up by something else, and counts as that long.
_OUTLIER = 2.0
#: steps with users after which training is tried again, where a single answer was too much
_TRY_AGAIN = 256


class TrainingShare:
    """Follows the steps of one engine that have users in them.

    Args:
      slowdown: most that a user's token may take longer beside training, as a share; 0.15 is 15%.
      most: answers that the engine samples at once.
    """

    def __init__(self, slowdown: float, most: int) -> None:
        self._slowdown, self._most = slowdown, most
        self._limit = 1 if slowdown > 0 else 0
        self._is_doubling = True
        self._steps = self._barred = self._seen = self._fitting = 0
        self._alone: deque[float] = deque(maxlen=_REMEMBERED)
        self._beside: list[float] = []
        self._alone_s = self._extra_s = 0.0

    @property
    def limit(self) -> int:
        """Training answers that a step may have beside users'."""
        return self._limit

    @property
    def alone_s(self) -> float:
        """What a step of users alone takes; 0 before one was seen."""
        return self._alone_s

    @property
    def extra_s(self) -> float:
        """What training adds to a step at the limit; 0 before that was seen, and at most what it may add."""
        return min(self._extra_s, self._slowdown * self._alone_s)

    def next_step(self) -> int:
        """Training answers that the next step may have; to be called for each step that has users."""
        self._steps += 1
        return 0 if self._steps % _TURN < _ALONE else self._limit

    def took(self, seconds: float, training: int) -> None:
        """Takes over how long one step of users took, with how many training answers in it."""
        if training:
            self._beside.append(seconds)
            self._seen = max(self._seen, training)
        else:
            self._alone.append(seconds)
            self._alone_s = _usual(self._alone)
        if not self._limit:
            self._wait_to_try_again()
        elif len(self._beside) >= _LOOK and len(self._alone) >= _ALONE:
            self._extra_s = max(0.0, _usual(self._beside) - self._alone_s)
            self._adjust(_usual(self._beside) / self._alone_s - 1)

    def _wait_to_try_again(self) -> None:
        self._barred += 1
        if self._slowdown > 0 and self._barred >= _TRY_AGAIN:
            self._limit, self._barred = 1, 0

    def _adjust(self, slowdown: float) -> None:
        if slowdown > self._slowdown:
            self._limit, self._is_doubling, self._fitting = int(_DECREASE * self._seen), False, 0
        elif self._seen >= self._limit:  # what is not used has not been tried
            self._fitting += 1
            if self._is_doubling or self._fitting >= _PATIENCE:
                more = self._limit if self._is_doubling else max(1, int(_INCREASE * self._limit))
                self._limit, self._fitting = min(self._most, self._limit + more), 0
        self._beside.clear()
        self._seen = 0


def _usual(seconds: Collection[float]) -> float:
    """Mean of what steps took, seconds."""
    bound = _OUTLIER * median(seconds)
    return fmean(min(bound, value) for value in seconds)
