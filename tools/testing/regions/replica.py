"""A replica as a simple queue: answers run at a fixed speed while the KV cache has room; the rest wait by priority."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from serving_bridge.gateway import Load
from tools.testing.regions.shape import ANSWERS, KV_TOKENS, TOKENS_PER_S
from tools.testing.simulate import SimulatedLoop


class Run:
    """One request on a replica.

    Attributes:
      started: set with the time at which it began.
      ended: set when its answers are whole.
    """

    __slots__ = ("came_s", "ended", "length_tokens", "started", "tokens")

    def __init__(self, loop: SimulatedLoop, tokens: int, length_tokens: int) -> None:
        self.tokens, self.length_tokens, self.came_s = tokens, length_tokens, loop.time()
        self.started: asyncio.Future[float] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()


class Replica:
    """See the module.

    Args:
      speed: factor of the cell's speed at the moment, 1 for the usual one.
    """

    def __init__(self, loop: SimulatedLoop, speed: Callable[[], float]) -> None:
        self._loop, self._speed = loop, speed
        self._waiting: list[tuple[int, int, Run]] = []
        self._numbers = self._life = self._running = self._tokens = 0
        self._queued_s = self._begun = 0.0

    def ask(self, tokens: int, length_tokens: int, priority: int) -> Run:
        """Takes a request of so many tokens in all, whose answers are each so long."""
        run = Run(self._loop, tokens, length_tokens)
        self._numbers += 1
        heapq.heappush(self._waiting, (priority, self._numbers, run))
        self._serve()
        return run

    def load(self) -> Load:
        """What vLLM's metrics would say."""
        return Load(
            requests=ANSWERS * (self._running + len(self._waiting)),
            waiting=ANSWERS * len(self._waiting),
            kv_usage=min(1.0, self._tokens / KV_TOKENS),
            queued_s=self._queued_s,
            begun=self._begun,
        )

    def clear(self) -> None:
        """Its server was started again: all that it had is gone."""
        self._life += 1
        self._waiting.clear()
        self._running = self._tokens = 0
        self._queued_s = self._begun = 0.0

    def _serve(self) -> None:
        while self._waiting and (not self._running or self._tokens + self._waiting[0][2].tokens <= KV_TOKENS):
            _, _, run = heapq.heappop(self._waiting)
            now_s = self._loop.time()
            self._running += 1
            self._tokens += run.tokens
            self._begun += 1
            self._queued_s += now_s - run.came_s
            run.started.set_result(now_s)
            long_s = run.length_tokens / (TOKENS_PER_S * self._speed())
            self._loop.call_later_for_nobody(long_s, self._end, run, self._life)

    def _end(self, run: Run, life: int) -> None:
        if life != self._life:
            return
        self._running -= 1
        self._tokens -= run.tokens
        if not run.ended.done():
            run.ended.set_result(None)
        self._serve()
