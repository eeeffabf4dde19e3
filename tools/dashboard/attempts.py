"""How often an address may give a wrong token before it has to wait."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

#: Wrong tokens of one address within the window; then none of it is looked at until the first of them is that old.
FREE = 10
WINDOW_S = 60.0
#: Addresses that are remembered; the one that was wrong longest ago is forgotten first.
_MAX_ADDRESSES = 4096


class Attempts:
    """Wrong tokens of the last minute, by address. For one thread.

    Args:
      clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[str, deque[float]] = {}

    def wait_s(self, address: str) -> int:
        """Whole seconds until a token of this address is looked at again; 0 if it is now."""
        times = self._wrong.get(address)
        if times is None:
            return 0
        now = self._clock()
        while times and times[0] <= now - WINDOW_S:
            times.popleft()
        if not times:
            del self._wrong[address]
        return math.ceil(times[0] + WINDOW_S - now) if len(times) >= FREE else 0

    def was_wrong(self, address: str) -> None:
        """Notes a wrong token."""
        times = self._wrong.pop(address, None) or deque(maxlen=FREE)
        times.append(self._clock())
        self._wrong[address] = times  # at the end
        if len(self._wrong) > _MAX_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]
