"""Code that blocks, such as the learner's loop, in virtual time: a thread that takes turns with the event loop.

One of the two runs at a time, and the turn goes over where the code sleeps and where it has ended, so that a seed gives
one order of events. A thread whose process was killed never gets its turn again, until the simulation unwinds it.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

from tools.testing.simulate.loop import Process, ProcessDiedError

_WORK: contextvars.ContextVar[BlockingWork | None] = contextvars.ContextVar("blocking work", default=None)


class BlockingWork:
    """One function in a thread of its own.

    Args:
      process: that it is of.
      work: the function.
    """

    def __init__(self, process: Process, work: Callable[[], Any]) -> None:
        self._process, self._work = process, work
        # Locks that the other side releases: semaphores are written in Python, and turns change often.
        self._its_turn, self._our_turn = threading.Lock(), threading.Lock()
        self._its_turn.acquire()
        self._our_turn.acquire()
        self._pause_s, self._has_ended, self._is_abandoned = 0.0, False, False
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    async def run(self) -> Any:
        """What the function returns, or raises."""
        context = contextvars.copy_context()
        context.run(_WORK.set, self)
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)
        self._thread.start()
        while True:
            self._go_on()
            if self._has_ended:
                break
            await asyncio.sleep(self._pause_s)
        if self._error is not None:
            raise self._error
        return self._result

    def abandon(self) -> None:
        """Unwinds what never ended; its process is dead."""
        if self._thread is not None and not self._has_ended:
            self._is_abandoned = True
            self._go_on()
            self._thread.join()

    def _go_on(self) -> None:
        self._its_turn.release()
        self._our_turn.acquire()

    def _sleep(self, seconds: float) -> None:
        if not self._is_abandoned:
            self._pause_s = seconds
            self._our_turn.release()
            self._its_turn.acquire()
        if self._is_abandoned:
            raise ProcessDiedError(self._process.name)
        self._process.check()

    def _run(self) -> None:
        self._its_turn.acquire()
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again where the work is awaited
            self._error = error
        self._has_ended = True
        self._our_turn.release()


def is_blocking() -> bool:
    """Whether the code that runs now may sleep."""
    return _WORK.get() is not None


def sleep(seconds: float) -> None:
    """In place of `time.sleep`: lets others run, in code that blocks; anywhere else it would stop the event loop."""
    work = _WORK.get()
    if work is None:
        raise AssertionError(f"a sleep of {seconds} s blocks the event loop")
    work._sleep(seconds)


class Outcome:
    """What a task in the background came to, for code that blocks; as `concurrent.futures.Future`."""

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s
        self._is_done = False
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._is_done

    def ended(self, error: BaseException | None) -> None:
        self._is_done, self._error = True, error

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within so many seconds."""
        left_s = timeout
        while not self._is_done and left_s > 0:
            sleep(self._poll_s)
            left_s -= self._poll_s
        return self._is_done

    def result(self, timeout: float) -> None:
        if not self.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error
