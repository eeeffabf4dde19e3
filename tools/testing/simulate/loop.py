"""An event loop whose time is a number, and processes in it that can be killed, stopped and continued like real ones.

Nothing ever waits: when no callback is ready, time moves on to the next timer. What a process does is what callbacks
with its context do, so a killed process simply never runs again (no cleanup, as after SIGKILL), and a stopped one runs
late. Order is decided by the order of calls alone: the same seed gives the same run, bit by bit.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from learner_jax.runtime import WeirError

_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated process", default=None)
_NOBODY = contextvars.Context()
#: wall clocks show this when a simulation begins
EPOCH_S = 1.7e9
#: no timer goes off sooner
_TICK_S = 1e-6
#: timers that are no further apart go off together
_RESOLUTION_S = 1e-9
#: tasks that are remembered before those that ended are forgotten
_FEW_TASKS = 256
#: a dead coroutine that waits more often than this while it is unwound is left as it is
_MAX_CLOSES = 20


class ProcessDiedError(BaseException):
    """Unwinds what a process was doing when it died; nothing of a simulation may catch it."""


class StalledError(WeirError, RuntimeError):
    """Everything waits for something that nothing will bring about."""


class Process:
    """A process of the simulation.

    Attributes:
      clock_offset_s: what its wall clock is ahead of the loop's time.
      ended: set when it has ended, with the error that it ended with (None: in order, or killed).
    """

    def __init__(self, name: str, loop: SimulatedLoop) -> None:
        self.name, self.loop = name, loop
        self.is_alive = True
        self.stopped_until_s = 0.0
        self.clock_offset_s = 0.0
        self.ended: asyncio.Future[BaseException | None] = loop.create_future()
        self._context = contextvars.Context()
        self._context.run(_PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs a coroutine as this process."""
        return self.loop.create_task(work, context=self._context.copy())

    def run_main(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs what the process is for; it ends when that does."""
        self.spawn(work).add_done_callback(self._main_ended, context=_NOBODY)

    def kill(self) -> None:
        """Ends it as SIGKILL does. From within, raise `ProcessDiedError` after."""
        self._end(None)

    def stop(self, seconds: float) -> None:
        """Lets it run no further for a while, as SIGSTOP and SIGCONT do."""
        self.stopped_until_s = max(self.stopped_until_s, self.loop.time() + seconds)

    def wall_clock(self) -> float:
        """Seconds since the epoch, by this process."""
        return EPOCH_S + self.loop.time() + self.clock_offset_s

    def check(self) -> None:
        """Raises once the process is dead: what is unwound must change nothing any more."""
        if not self.is_alive:
            raise ProcessDiedError(self.name)

    def _main_ended(self, task: asyncio.Task[Any]) -> None:
        error = task.exception() if not task.cancelled() else None
        self._end(None if isinstance(error, ProcessDiedError) else error)

    def _end(self, error: BaseException | None) -> None:
        self.is_alive = False
        if not self.ended.done():
            self.ended.set_result(error)


class _OrderedTask(asyncio.Task):
    """A task whose place in sets does not depend on where it lies in memory."""

    def __init__(self, work: Any, *, number: int, **options: Any) -> None:
        self.number = number  # before asyncio puts it into a set of all tasks
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self.number


class _OrderedFuture(asyncio.Future):
    number = 0

    def __hash__(self) -> int:
        return self.number


class _Handle:
    """What is to be called, as the process that it is of; takes the place of `asyncio.Handle`, in half the time."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "process")

    def __init__(
        self, callback: Any, args: tuple[Any, ...], context: contextvars.Context, process: Process | None
    ) -> None:
        self.callback, self.args, self.context, self.process = callback, args, context, process
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        return self.is_cancelled


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module.

    Args:
      executor_delay: seconds until the result of work given to an executor is known; the work itself is done at once.
    """

    def __init__(self, executor_delay: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self._now_s = 0.0
        self._due: deque[_Handle] = deque()
        #: (time, number, what is to be called then), a heap
        self._timers: list[tuple[float, int, _Handle]] = []
        self._executor_delay = executor_delay
        self._numbers = 0
        self._tasks: list[asyncio.Task[Any]] = []  # that have not ended, and some that have
        self._most_tasks = _FEW_TASKS
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda loop, context: None)

    def time(self) -> float:
        return self._now_s

    def create_future(self) -> asyncio.Future[Any]:
        future = _OrderedFuture(loop=self)
        self._numbers += 1
        future.number = self._numbers
        return future

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        context = contextvars.copy_context() if context is None else context
        handle = _Handle(callback, args, context, context.get(_PROCESS))
        self._due.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        context = contextvars.copy_context() if context is None else context
        handle = _Handle(callback, args, context, context.get(_PROCESS))
        self._set_timer(when, handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_later_for_nobody(self, delay: float, callback: Callable[..., Any], *args: Any) -> None:
        """A timer that goes off whatever happens to processes: what is on the wire, or on a disk."""
        self.call_at(self.time() + delay, callback, *args, context=_NOBODY)

    def when_done(self, future: asyncio.Future[Any], callback: Callable[[Any], None]) -> None:
        """Calls back whatever happens to the process that waits now."""
        future.add_done_callback(callback, context=_NOBODY)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Does the work now; its outcome is known after the delay."""
        future = self.create_future()
        try:
            result, error = func(*args), None
        except Exception as caught:  # noqa: BLE001 - handed to who waits for the work
            result, error = None, caught
        delay_s = self._executor_delay()
        if delay_s:
            self.call_at(self.time() + delay_s, _resolve, future, result, error)
        else:
            _resolve(future, result, error)
        return future

    def abandon(self) -> None:
        """Ends the simulation: closes what never ended, quietly."""
        # By default asyncio would make a loop for what dying code still runs, and keep in it all that it hears of.
        asyncio.set_event_loop(None)
        # What that code starts while it is unwound becomes a task of this loop, and is closed in its turn.
        asyncio._set_running_loop(self)
        try:
            while self._tasks:
                tasks, self._tasks = self._tasks, []
                for task in tasks:
                    if not task.done():
                        task._log_destroy_pending = False  # type: ignore[attr-defined]
                        _unwind(task.get_coro())
        finally:
            asyncio._set_running_loop(None)
        self.close()

    def _set_timer(self, when: float, handle: _Handle) -> None:
        # A bound that lies less ahead than the time's last digit would be looked at again and again, and never reached.
        earliest = self._now_s + _TICK_S
        self._numbers += 1
        heapq.heappush(self._timers, (when if when > earliest else earliest, self._numbers, handle))

    def _run_once(self) -> None:
        """Runs until it is stopped; `run_forever` calls it again where it was not."""
        due, timers = self._due, self._timers
        while not self._stopping:  # type: ignore[attr-defined]
            while timers and timers[0][2].is_cancelled:
                heapq.heappop(timers)
            if not due:
                if not timers:
                    raise StalledError("everything waits for something that nothing will bring about")
                self._now_s = max(self._now_s, timers[0][0])
            end_s = self._now_s + _RESOLUTION_S
            while timers and timers[0][0] < end_s:
                due.append(heapq.heappop(timers)[2])
            for _ in range(len(due)):
                self._call(due.popleft())

    def _call(self, handle: _Handle) -> None:
        process = handle.process
        if handle.is_cancelled:
            return
        if process is not None:
            if not process.is_alive:
                return
            if process.stopped_until_s > self._now_s:
                self._set_timer(process.stopped_until_s, handle)
                return
        try:
            handle.context.run(handle.callback, *handle.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001 - as every event loop; who waits for it has its outcome
            return

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        """They are not counted: nobody shuts them down, and a weak reference to each takes its time."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        self._numbers += 1
        task = _OrderedTask(work, number=self._numbers, loop=loop, **options)
        self._tasks.append(task)
        if len(self._tasks) > self._most_tasks:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._most_tasks = max(_FEW_TASKS, 2 * len(self._tasks))
        return task


def _unwind(work: Any) -> None:
    """Closes a coroutine, also one that waits for something in the course of it, a few times over."""
    for _ in range(_MAX_CLOSES):
        try:
            work.close()
        except RuntimeError:  # it waits once more, or ends with such an error: closing it again then does nothing
            continue
        except BaseException:  # noqa: BLE001 - dead code objects to being unwound; nobody is left to care
            return
        else:
            return


def current_process() -> Process | None:
    """The process that the code that runs now is of."""
    return _PROCESS.get()


def _resolve(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
