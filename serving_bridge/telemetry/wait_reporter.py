"""Tells the metrics log what a process waits for, while it waits: a thread that goes on when the rest stands still."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from learner_jax.runtime import Waits, WaitState

Log = Callable[..., None]

#: shorter waits are how things go
_LEAST_S = 1.0
_AGAIN_S = 5.0
_POLL_S = 0.5
_JOIN_S = 5.0


class WaitReport:
    """Decides when an event `waits` is due.

    It is when what is waited for changed, or after `_AGAIN_S` of the same; once more, empty, when all waits ended.
    """

    def __init__(self, log: Log):
        self._log = log
        self._written: frozenset[tuple[str, str]] = frozenset()
        self._written_s = float("-inf")

    def look(self, states: Sequence[WaitState], now_s: float) -> None:
        """Writes the event if it is due; `now_s` is monotonic."""
        long = [state for state in states if state.waited_s >= _LEAST_S]
        names = frozenset((state.what, state.on) for state in long)
        if names == self._written and (not names or now_s - self._written_s < _AGAIN_S):
            return
        self._written, self._written_s = names, now_s
        fields = [
            {"what": s.what, "on": s.on, "waited_s": round(s.waited_s, 3), "limit_s": round(s.limit_s, 3)} for s in long
        ]
        self._log("waits", waits=fields)


@contextmanager
def reported_waits(waits: Waits, log: Log, *, clock: Callable[[], float], poll_s: float = _POLL_S) -> Iterator[None]:
    """While the block runs, waits of a second and more appear in the log as events `waits`.

    An event that can't be written is left out: the process meets the same disk at its own next event, and says so.

    Args:
      clock: monotonic seconds.
    """
    report, ended = WaitReport(log), threading.Event()

    def look(states: Sequence[WaitState]) -> None:
        with suppress(OSError):
            report.look(states, clock())

    def run() -> None:
        while not ended.wait(poll_s):
            look(waits.current())
        look([])

    thread = threading.Thread(target=run, name="wait-reporter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_JOIN_S)
