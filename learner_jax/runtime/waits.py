"""Bounded waits: each says what it waits for and on whom, gives up in time, and can be seen while it lasts."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from learner_jax.runtime.errors import WeirError


class WaitTimeoutError(WeirError, RuntimeError):
    """A wait lasted longer than its bound: says what for, on whom, and the setting that bounds it."""


@dataclass(frozen=True)
class WaitState:
    """A wait as it can be seen from outside.

    Attributes:
      what: what is waited for, e.g. "12 of 64 groups of step 7".
      on: who has to act: a process of the run, or "disk", "network".
      waited_s: since it began, or since it last got something.
      limit_s: it gives up when `waited_s` reaches this.
    """

    what: str
    on: str
    waited_s: float
    limit_s: float


class Wait:
    """One wait while it goes on; `Waits.waiting` makes it."""

    def __init__(
        self,
        what: str,
        *,
        on: str,
        limit_s: float,
        setting: str,
        hint: str,
        error: type[Exception],
        clock: Callable[[], float],
    ):
        self._what, self._on, self._limit_s = what, on, limit_s
        self._setting, self._hint, self._error, self._clock = setting, hint, error, clock
        self._since_s = clock()

    @property
    def waited_s(self) -> float:
        return self._clock() - self._since_s

    @property
    def remaining_s(self) -> float:
        """Seconds until it gives up, at least 0: the timeout for a call that blocks."""
        return max(0.0, self._limit_s - self.waited_s)

    def state(self) -> WaitState:
        return WaitState(self._what, self._on, self.waited_s, self._limit_s)

    def progressed(self, what: str | None = None) -> None:
        """Starts the bound anew: part of what was waited for has come; `what` says what is still missing."""
        self._since_s = self._clock()
        self._what = self._what if what is None else what

    def hint(self, text: str) -> None:
        """What the error will say beside the rest, as known by now."""
        self._hint = text

    def check(self) -> None:
        """Raises the wait's error once the bound is reached."""
        if self.waited_s >= self._limit_s:
            raise self.error()

    def error(self) -> Exception:
        text = f"waited {self.waited_s:.1f} s for {self._what} from {self._on} and gave up"
        if self._setting:
            text += f" ({self._setting} = {self._limit_s:g} s)"
        return self._error(f"{text}: {self._hint}" if self._hint else text)

    def sleep(self, seconds: float) -> None:
        """Checks, then sleeps, at most until the bound."""
        self.check()
        time.sleep(min(seconds, self.remaining_s))

    async def pause(self, seconds: float) -> None:
        """`sleep` for coroutines."""
        self.check()
        await asyncio.sleep(min(seconds, self.remaining_s))

    @asynccontextmanager
    async def bound(self) -> AsyncIterator[None]:
        """Cancels what is awaited inside when the bound is reached, and raises the wait's error."""
        try:
            async with asyncio.timeout(self.remaining_s) as timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self.error() from None


class Waits:
    """The waits that go on in this process now. Safe to use from several threads.

    Args:
      clock: monotonic seconds; in simulations the event loop's time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._current: dict[int, Wait] = {}

    @contextmanager
    def waiting(
        self,
        what: str,
        *,
        on: str,
        limit_s: float,
        setting: str = "",
        hint: str = "",
        error: type[Exception] = WaitTimeoutError,
    ) -> Iterator[Wait]:
        """A wait, seen by others while the block runs. The block must use one of the `Wait`'s means to end in time.

        Args:
          setting: the configuration key behind `limit_s`, for the error.
          hint: what to look at when it gives up, for the error.
          error: what giving up raises; made from one text.
        """
        wait = Wait(what, on=on, limit_s=limit_s, setting=setting, hint=hint, error=error, clock=self._clock)
        number = next(self._numbers)
        self._current[number] = wait
        try:
            yield wait
        finally:
            del self._current[number]

    def current(self) -> list[WaitState]:
        """What is being waited for now, the longest first."""
        states = [wait.state() for wait in list(self._current.values())]
        return sorted(states, key=lambda state: -state.waited_s)
