"""Who goes next when not all can: classes in their order, and within a class tenants by the tokens that they took.

Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996, section 2): a request's start tag is the later of the
class's virtual time and the finish tag of the tenant's request before it. Its finish tag adds its tokens divided by the
tenant's weight. The request with the smallest start tag goes next, and its start tag becomes the virtual time. A tenant
that floods its line moves its own tags far ahead and nobody else's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serving_bridge.settings import PRIORITIES, Priority
from serving_bridge.tenants.errors import DeadlinePassed, QueueFull, Refusal, Shed
from serving_bridge.tenants.slices import Slice

#: What a full queue's Retry-After lies between, in seconds.
_SOONEST_S, _LATEST_S = 0.1, 60.0
#: Part of the newest interval in the mean one.
_NEWEST = 0.2


@dataclass(frozen=True)
class QueueBounds:
    """How many requests may wait: of one tenant and class, and of all."""

    per_tenant: int = 64
    all: int = 1024


@dataclass(eq=False)
class _Waiting:
    cost: float
    future: asyncio.Future[None]


@dataclass(eq=False)
class _Line:
    """A tenant's requests of one class that wait, first come, first served."""

    tenant: str
    own: Slice
    weight: int = 1
    finish: float = 0.0
    waiting: deque[_Waiting] = field(default_factory=deque)
    started_s: float | None = None
    interval_s: float = 1.0

    def started(self, now: float) -> None:
        if self.started_s is not None:
            self.interval_s += _NEWEST * (now - self.started_s - self.interval_s)
        self.started_s = now


class FairQueue:
    """The places of a deployment, as far as this gateway holds them, and who waits for one; used by the event loop.

    Args:
      everybody: slice of the deployment's limits, whose concurrency is the number of places.
      is_open: whether a class is served at the moment (`shedding`).
      clock: monotonic, in seconds.
    """

    def __init__(
        self,
        everybody: Callable[[], Slice],
        *,
        bounds: QueueBounds | None = None,
        is_open: Callable[[Priority], bool] = lambda priority: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._everybody = everybody
        self._bounds = QueueBounds() if bounds is None else bounds
        self._is_open, self._clock = is_open, clock
        self._lines: dict[Priority, dict[str, _Line]] = {priority: {} for priority in PRIORITIES}
        self._virtual: dict[Priority, float] = dict.fromkeys(PRIORITIES, 0.0)
        self._num_waiting = 0

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    def waiting_by_class(self) -> dict[Priority, int]:
        """How many wait, by class."""
        return {priority: sum(len(line.waiting) for line in lines.values()) for priority, lines in self._lines.items()}

    async def enter(
        self, tenant: str, own: Slice, priority: Priority, *, weight: int, cost: float, timeout_s: float
    ) -> None:
        """Takes a place, at once or in turn; `leave` gives it back.

        Args:
          own: slice of the tenant's own limits.
          cost: tokens that are reserved.
          timeout_s: bound on the wait.

        Raises:
          QueueFull: too many wait.
          Shed: it gave way to a request of a better class when the queue was full.
          DeadlinePassed: its turn did not come in time.
        """
        line = self._line(tenant, own, priority)
        line.weight, line.own = weight, own
        if not line.waiting and self._is_open(priority) and not self._goes_first(priority) and self._has_place(line):
            self._start(line, priority, cost)
            return
        self._check_room(line, priority)
        waiting = _Waiting(cost, asyncio.get_running_loop().create_future())
        line.waiting.append(waiting)
        self._num_waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await waiting.future
        except TimeoutError:
            if waiting.future.done() and not waiting.future.cancelled():
                waiting.future.result()  # its turn came at the same moment, or it had to give way
                return
            self._remove(line, waiting)
            raise DeadlinePassed(
                f"The request waited {timeout_s:g} s for its turn; the deployment is busy.",
                retry_after_s=self._retry_after_s(line),
            ) from None
        except asyncio.CancelledError:
            if waiting.future.done() and not waiting.future.cancelled() and waiting.future.exception() is None:
                self.leave(own)  # its turn came at the same moment
            else:
                self._remove(line, waiting)
            raise

    def leave(self, own: Slice) -> None:
        """Gives a place back, and serves who is next."""
        own.leave()
        self._everybody().leave()
        self.serve()

    def serve(self) -> None:
        """Lets in as many as there are places: after one was given back, or the shares or the pressure changed."""
        while self._num_waiting and self._everybody().has_place():
            chosen = self._next()
            if chosen is None:
                return
            line, priority = chosen
            waiting = line.waiting.popleft()
            self._num_waiting -= 1
            if waiting.future.done():
                continue
            self._start(line, priority, waiting.cost)
            waiting.future.set_result(None)

    def _next(self) -> tuple[_Line, Priority] | None:
        for priority in PRIORITIES:
            if not self._is_open(priority):
                continue
            ready = [line for line in self._lines[priority].values() if line.waiting and line.own.has_place()]
            if ready:
                return min(ready, key=lambda line: (self._start_tag(line, priority), line.tenant)), priority
        return None

    def _goes_first(self, priority: Priority) -> bool:
        """Whether somebody of the same or a better class waits who could go now."""
        if not self._num_waiting:
            return False
        found = self._next()
        return found is not None and PRIORITIES.index(found[1]) <= PRIORITIES.index(priority)

    def _has_place(self, line: _Line) -> bool:
        return line.own.has_place() and self._everybody().has_place()

    def _start_tag(self, line: _Line, priority: Priority) -> float:
        return max(self._virtual[priority], line.finish)

    def _start(self, line: _Line, priority: Priority, cost: float) -> None:
        tag = self._start_tag(line, priority)
        self._virtual[priority] = tag
        line.finish = tag + cost / line.weight
        line.started(self._clock())
        line.own.enter()
        self._everybody().enter()

    def _line(self, tenant: str, own: Slice, priority: Priority) -> _Line:
        lines = self._lines[priority]
        line = lines.get(tenant)
        if line is None:
            if len(lines) > self._bounds.all:  # forget those that owe nothing to the others
                virtual = self._virtual[priority]
                for name in [name for name, old in lines.items() if not old.waiting and old.finish <= virtual]:
                    del lines[name]
            line = lines[tenant] = _Line(tenant, own)
        return line

    def _check_room(self, line: _Line, priority: Priority) -> None:
        if len(line.waiting) >= self._bounds.per_tenant:
            raise QueueFull(
                f"{len(line.waiting)} requests of yours wait already; send fewer at a time.",
                retry_after_s=self._retry_after_s(line),
            )
        if self._num_waiting >= self._bounds.all and not self._make_room(priority):
            raise QueueFull("Too many requests wait.", retry_after_s=self._retry_after_s(line))

    def _make_room(self, priority: Priority) -> bool:
        """Sends away the newest request of the longest line of the last class, if that is a worse one."""
        for worse in reversed(PRIORITIES[PRIORITIES.index(priority) + 1 :]):
            longest = max(self._lines[worse].values(), key=lambda line: len(line.waiting), default=None)
            if longest is not None and longest.waiting:
                waiting = longest.waiting.pop()
                self._num_waiting -= 1
                _fail(waiting, Shed("The deployment is busy with requests that go first.", retry_after_s=_LATEST_S))
                return True
        return False

    def _remove(self, line: _Line, waiting: _Waiting) -> None:
        if waiting in line.waiting:
            line.waiting.remove(waiting)
            self._num_waiting -= 1

    def _retry_after_s(self, line: _Line) -> float:
        """When one more of the tenant's requests will have started, as they did of late."""
        return min(max(line.interval_s, _SOONEST_S), _LATEST_S)


def _fail(waiting: _Waiting, refusal: Refusal) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(refusal)
