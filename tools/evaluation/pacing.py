"""When the next request may go out: so many a minute, and none while an endpoint asked for a pause."""

from __future__ import annotations

import asyncio


class Pacer:
    """Spaces requests evenly, whoever makes them.

    Args:
      per_minute: most requests in a minute, tries included; 0 for no limit.
    """

    def __init__(self, per_minute: float = 0.0) -> None:
        self._gap_s = 60.0 / per_minute if per_minute else 0.0
        self._next_s = 0.0

    async def turn(self) -> None:
        """Returns when a request may go out."""
        now_s = asyncio.get_running_loop().time()
        mine_s = max(self._next_s, now_s)
        if self._gap_s:
            self._next_s = mine_s + self._gap_s
        await asyncio.sleep(mine_s - now_s)

    def pause(self, seconds: float) -> None:
        """Holds everything back for so long."""
        self._next_s = max(self._next_s, asyncio.get_running_loop().time() + seconds)
