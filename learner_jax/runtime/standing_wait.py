"""A bounded wait that begins and ends with a condition at which a loop looks again and again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from learner_jax.runtime.waits import Wait, Waits


class StandingWait:
    """One wait of a loop; the arguments are those of `Waits.waiting`."""

    def __init__(self, waits: Waits, what: str, *, on: str, limit_s: float, setting: str, error: type[Exception]):
        self._enter: Callable[[], Wait] = lambda: self._stack.enter_context(
            waits.waiting(what, on=on, limit_s=limit_s, setting=setting, error=error)
        )
        self._stack = ExitStack()
        self._wait: Wait | None = None

    @property
    def remaining_s(self) -> float:
        """Seconds until it gives up, infinite while it does not stand."""
        return float("inf") if self._wait is None else self._wait.remaining_s

    def look(self, holds: bool, hint: Callable[[], str] | None = None) -> None:
        """Begins, goes on or ends, by whether the condition holds now; raises the wait's error at its bound.

        Args:
          hint: what the error will say, made only where it is needed.
        """
        if not holds:
            self.end()
            return
        if self._wait is None:
            self._wait = self._enter()
        if self._wait.remaining_s == 0 and hint is not None:
            self._wait.hint(hint())
        self._wait.check()

    def progressed(self) -> None:
        if self._wait is not None:
            self._wait.progressed()

    def end(self) -> None:
        self._wait = None
        self._stack.close()
