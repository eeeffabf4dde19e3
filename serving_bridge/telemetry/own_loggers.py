"""Loggers of a user's own: each gets every event of its process in a thread, and can't stop or slow the run."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from learner_jax.runtime import Door, printable
from serving_bridge.telemetry.metrics_log import MetricsLog, Record
from serving_bridge.telemetry.trackers import TRACKERS, require_packages

LOGGER_DOOR = Door(kind="logger", setting="run.loggers", built_in=TRACKERS, positional=("directory", "process"))
#: Events that wait for a logger at most; further ones are dropped.
MAX_WAITING = 10_000
#: Given to all loggers of a process together when it ends.
CLOSE_S = 5.0
_IDLE_S = 60.0
_MAX_ERROR = 500


class Logger(Protocol):
    """What a logger is: made with the run's directory and the name of its process; `close` may be left out."""

    def write(self, event: dict[str, Any]) -> None:
        """Takes one event, as a line of metrics.jsonl holds it."""


class LoggerThread:
    """One logger, made and called in a thread of its own. Owns that thread.

    Args:
      make: makes the logger; called in the thread, since it may wait for a network.
      tell: writes an event to the metrics log alone; told of the first failure and of the first event dropped.
    """

    def __init__(
        self, name: str, make: Callable[[], Any], tell: Callable[..., object], *, max_waiting: int = MAX_WAITING
    ) -> None:
        self.name = name
        self._make, self._tell = make, tell
        self._events: queue.Queue[Record | None] = queue.Queue(max_waiting)
        self._is_closed, self._is_broken = threading.Event(), threading.Event()
        self._handed = self._written = self._failed = self._dropped = 0
        self._thread = threading.Thread(target=self._run, name=f"logger {name}", daemon=True)
        self._thread.start()

    def put(self, event: Record) -> None:
        """Hands an event over, or drops it; never waits."""
        self._handed += 1
        if self._is_broken.is_set():
            return
        try:
            self._events.put_nowait(dict(event))
        except queue.Full:
            self._dropped += 1
            if self._dropped == 1:
                self._told(error=f"{self._events.maxsize} events wait for it; further ones are dropped meanwhile")

    def close(self, limit_s: float = CLOSE_S) -> None:
        """Lets the logger take what waits for it, for so long; then says how many events it lost, if any."""
        self._is_closed.set()
        with contextlib.suppress(queue.Full):  # the thread sees that it is closed when nothing is left
            self._events.put_nowait(None)
        self._thread.join(limit_s)
        if self._written < self._handed:
            dropped = self._handed - self._written - self._failed
            self._told(written=self._written, failed=self._failed, dropped=dropped)

    def _run(self) -> None:
        try:
            logger = self._make()
        except Exception as error:  # noqa: BLE001
            self._is_broken.set()
            self._told(error=_shown(error))
            return
        while (event := self._next()) is not None:
            try:
                logger.write(event)
                self._written += 1
            except Exception as error:  # noqa: BLE001
                self._failed += 1
                if self._failed == 1:
                    self._told(error=_shown(error))
        try:
            getattr(logger, "close", lambda: None)()
        except Exception as error:  # noqa: BLE001
            self._told(error=_shown(error))

    def _next(self) -> Record | None:
        while True:
            try:
                return self._events.get(timeout=0.0 if self._is_closed.is_set() else _IDLE_S)
            except queue.Empty:
                if self._is_closed.is_set():
                    return None

    def _told(self, **fields: Any) -> None:
        with contextlib.suppress(OSError):  # of which the process itself learns with its next event
            self._tell("logger", logger=self.name, **fields)


def _shown(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}")[:_MAX_ERROR]


def with_loggers(log: MetricsLog, names: tuple[str, ...], directory: Path, process: str) -> MetricsLog:
    """Hands every event of `log` also to the loggers that run.loggers names, until the process ends.

    Raises:
      DoorError: a name stands for no class or function that takes (directory, process), or lacks its package.
    """
    require_packages(names)
    makers = [(name, LOGGER_DOOR.open(name)) for name in names]
    for name, make in makers:
        thread = LoggerThread(name, partial(make, directory, process), log.write_here)
        log.hand_to(thread.put)
        atexit.register(thread.close, CLOSE_S / len(names))
    return log
