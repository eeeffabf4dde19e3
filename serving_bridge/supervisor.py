"""Runs a job's processes on one machine: starts, watches, restarts and stops them, and never leaves one behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving_bridge.guard import GuardedProcess
from serving_bridge.replica import log_tail

Log = Callable[..., None]


class ProcessFailedError(RuntimeError):
    """A process ended with an error and may not be restarted (any more); carries the end of its log."""


@dataclass
class _Child:
    name: str
    command: Sequence[str]
    log_path: Path
    grace_s: float
    restarts_left: int
    log_start: int
    process: GuardedProcess
    stopping: bool = False


class Supervisor:
    """Owns child processes; use it as a context manager, so that all are stopped in the end.

    Args:
      log_dir: each process writes to `<log_dir>/<name>.log`.
      log: told of every restart.
    """

    def __init__(self, log_dir: Path, log: Log):
        self._log_dir = log_dir
        self._log = log
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in reversed(list(self._children)):
            self.ask_to_stop(name)
        for name in list(self._children):
            self.stop(name)

    def start(self, name: str, command: Sequence[str], *, restarts: int = 0, grace_s: float = 30.0) -> None:
        """Starts a process; it is restarted up to `restarts` times when it ends with an error."""
        log_path = self._log_dir / f"{name}.log"
        log_start = log_path.stat().st_size if log_path.exists() else 0
        process = self._spawn(command, log_path, grace_s)
        self._children[name] = _Child(name, command, log_path, grace_s, restarts, log_start, process)

    def has_finished(self, name: str) -> bool:
        """Whether a process ended well. One that crashed has not: `check` restarts it or raises."""
        return self._children[name].process.poll() == 0

    def check(self) -> None:
        """Looks after all processes once; those that ended well are left alone.

        Raises:
          ProcessFailedError: one ended with an error and has no restarts left.
        """
        for child in self._children.values():
            status = child.process.poll()
            if status is None or status == 0 or child.stopping:
                continue
            if child.restarts_left == 0:
                raise ProcessFailedError(
                    f"process {child.name} ended with status {status}; the end of {child.log_path}:\n"
                    f"{log_tail(child.log_path, child.log_start)}"
                )
            child.restarts_left -= 1
            self._log("restart", name=child.name, status=status, restarts_left=child.restarts_left)
            child.process = self._spawn(child.command, child.log_path, child.grace_s)

    def ask_to_stop(self, name: str) -> None:
        """Asks a process to end, without waiting."""
        child = self._children[name]
        child.stopping = True
        child.process.terminate()

    def stop(self, name: str) -> None:
        """Asks a process to end and waits until it and all its descendants have."""
        self.ask_to_stop(name)
        child = self._children.pop(name)
        child.process.wait(child.grace_s + 30.0)

    def _spawn(self, command: Sequence[str], log_path: Path, grace_s: float) -> GuardedProcess:
        return GuardedProcess(command, env=dict(os.environ), log_path=log_path, grace_s=grace_s)
