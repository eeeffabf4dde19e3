"""How often something may be restarted: so many times within a window, with a growing pause between."""

from __future__ import annotations

from collections import deque

_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 60.0


class RestartBudget:
    """Restarts of one replica or process. What ran well for a whole window has all of them back.

    Args:
      limit: restarts within any window.
      window_s: seconds after which a restart is forgotten.
    """

    def __init__(self, limit: int, window_s: float):
        self._limit, self._window_s = limit, window_s
        self._spent: deque[float] = deque()

    def left(self, now_s: float) -> int:
        """Restarts that may still be had at this time."""
        while self._spent and now_s - self._spent[0] >= self._window_s:
            self._spent.popleft()
        return self._limit - len(self._spent)

    def spend(self, now_s: float) -> float | None:
        """Takes one restart: the pause before it in seconds (none before the first), or None if there are none left."""
        if self.left(now_s) <= 0:
            return None
        earlier = len(self._spent)
        self._spent.append(now_s)
        return min(_FIRST_PAUSE_S * 2 ** (earlier - 1), _MAX_PAUSE_S) if earlier else 0.0

    def next_s(self, now_s: float) -> float:
        """Seconds until one may be had; infinite if there is never one."""
        if self.left(now_s) > 0:
            return 0.0
        return self._spent[0] + self._window_s - now_s if self._spent else float("inf")
