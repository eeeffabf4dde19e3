"""Runs a job's processes on one machine: starts, watches, restarts and stops them, and never leaves one behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from learner_jax.runtime import CANNOT_HEAL_STATUS, Waits, WeirError
from serving_bridge.processes.environment import process_environment
from serving_bridge.processes.guard import GuardedProcess, GuardError
from serving_bridge.processes.logs import log_tail
from serving_bridge.processes.restarts import RestartBudget

Log = Callable[..., None]
Command = Sequence[str]

#: beyond its grace, what a process and its descendants may take to end
_END_S = 30.0
#: In the last line of a process that ends because another one of its group has; see `learner_jax.hosts.watch`.
_ECHO = " stops, because "


#: of processes that would fail in the same way again; 2 is argparse's
_FINAL_STATUSES = (CANNOT_HEAL_STATUS, 2)
#: how our commands begin what they say last
_ERROR = "error: "


class ProcessFailedError(WeirError, RuntimeError):
    """A process ended with an error and may not be restarted (any more); carries the end of its log and its status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.can_heal = status not in _FINAL_STATUSES


@dataclass
class _Child:
    name: str
    log_path: Path
    log_start: int
    process: GuardedProcess


@dataclass
class _Group:
    """Processes that live and die together; most groups have one."""

    name: str
    commands: Callable[[], Sequence[Command]]
    grace_s: float
    end_s: float
    restarts: int
    budget: RestartBudget
    stop_signal: int
    children: list[_Child]
    stopping: bool = False
    #: those that were seen to have failed by themselves, the first first, and when
    failed: list[tuple[_Child, int]] = field(default_factory=list)
    failed_s: float | None = None
    #: the others were ended, which says nothing about why
    killed: bool = False
    restart_s: float | None = None


class Supervisor:
    """Owns child processes; use it as a context manager, so that all are stopped in the end.

    Left without an exception it gives each process its grace; an exception, also one that comes meanwhile, such as the
    KeyboardInterrupt of a second signal, ends them at once.

    Args:
      log_dir: each process writes to `<log_dir>/<name>.log`, those of a group to `<name>-<number>.log`.
      log: told of every restart.
      waits: where its waits are seen.
      also: names of further environment variables for its processes (serving.environment).
      clock: monotonic seconds.
    """

    def __init__(
        self,
        log_dir: Path,
        log: Log,
        *,
        waits: Waits | None = None,
        also: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self._also = also
        self._log_dir = log_dir
        self._log = log
        self._waits = waits or Waits()
        self._clock = clock
        self._groups: dict[str, _Group] = {}

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None or not issubclass(kind, KeyboardInterrupt):
                for name in reversed(list(self._groups)):
                    self.ask_to_stop(name)
                for name in list(self._groups):
                    self.stop(name)
        finally:
            self._kill_all()

    def start(
        self, name: str, command: Command, *, restarts: int = 0, window_s: float = 3600.0, grace_s: float = 30.0
    ) -> None:
        """Starts a process; it is restarted up to `restarts` times within `window_s` when it ends with an error."""
        self.start_group(name, lambda: [command], restarts=restarts, window_s=window_s, grace_s=grace_s)

    def start_group(
        self,
        name: str,
        commands: Callable[[], Sequence[Command]],
        *,
        restarts: int = 0,
        window_s: float = 3600.0,
        grace_s: float = 30.0,
        end_s: float = 60.0,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        """Starts processes that are restarted together, as soon as one of them has ended with an error.

        Args:
          commands: asked anew for each start.
          end_s: time that the others get to notice by themselves that one has failed, and to end.
          stop_signal: as of `GuardedProcess`.
        """
        group = _Group(name, commands, grace_s, end_s, restarts, RestartBudget(restarts, window_s), stop_signal, [])
        self._groups[name] = group
        self._spawn(group)

    def pids(self, name: str) -> list[int]:
        """Process ids of a group's guards, whose children the processes are."""
        return [child.process.pid for child in self._groups[name].children]

    def has_finished(self, name: str) -> bool:
        """Whether all of a group ended well. One that crashed has not: `check` restarts it or raises."""
        return all(child.process.poll() == 0 for child in self._groups[name].children)

    def check(self) -> None:
        """Looks after all processes once, without waiting; those that ended well are left alone.

        Raises:
          ProcessFailedError: one ended with an error and has no restarts left, or would fail in the same way again.
        """
        for group in self._groups.values():
            if not group.stopping:
                self._check(group)

    def ask_to_stop(self, name: str) -> None:
        """Asks a group to end, without waiting."""
        group = self._groups[name]
        group.stopping = True
        for child in group.children:
            child.process.terminate()

    def stop(self, name: str) -> None:
        """Asks a group to end and waits until it and all its descendants have."""
        self.ask_to_stop(name)
        group = self._groups[name]
        limit_s = group.grace_s + _END_S
        with self._waits.waiting("the end of its processes", on=name, limit_s=limit_s) as wait:
            for child in group.children:
                child.process.wait(wait.remaining_s)
        del self._groups[name]

    def _check(self, group: _Group) -> None:
        statuses = [child.process.poll() for child in group.children]
        now = self._clock()
        if not group.killed:
            known = [child for child, _ in group.failed]
            group.failed += [
                (child, status)
                for child, status in zip(group.children, statuses, strict=True)
                if status and child not in known
            ]
        if not group.failed:
            return
        for child, status in group.failed:
            if status in _FINAL_STATUSES:
                raise ProcessFailedError(_last_words(child), status)
        if group.failed_s is None:
            group.failed_s = now
        if None in statuses:
            if now - group.failed_s >= group.end_s:
                group.killed = True
                for child in group.children:
                    child.process.kill()
            return
        if group.restart_s is None:
            pause_s = group.budget.spend(now)
            if pause_s is None:
                raise _failure(group)
            group.restart_s = now + pause_s
        if now >= group.restart_s:
            left = group.budget.left(now)
            self._log("restart", name=group.name, status=statuses, restarts_left=left, error=_reason(group))
            group.failed_s = group.restart_s = None
            group.failed, group.killed = [], False
            self._spawn(group)

    def _spawn(self, group: _Group) -> None:
        commands = group.commands()
        group.children = []
        for number, command in enumerate(commands):
            name = group.name if len(commands) == 1 else f"{group.name}-{number}"
            log_path = self._log_dir / f"{name}.log"
            log_start = log_path.stat().st_size if log_path.exists() else 0
            process = GuardedProcess(
                command,
                env=process_environment(os.environ, self._also),
                log_path=log_path,
                grace_s=group.grace_s,
                stop_signal=group.stop_signal,
            )
            group.children.append(_Child(name, log_path, log_start, process))

    def _kill_all(self) -> None:
        """Ends what is left, at once."""
        children = [child for group in self._groups.values() for child in group.children]
        self._groups.clear()
        for child in children:
            child.process.kill()
        for child in children:
            try:
                child.process.wait(_END_S)
            except GuardError:  # the guard itself is stopped
                child.process.destroy()


def _first(group: _Group) -> tuple[_Child, int, str]:
    """The process that began a group's end, its status and the end of its log: one that only followed didn't."""
    ends = [(child, status, log_tail(child.log_path, child.log_start)) for child, status in group.failed]
    return next((end for end in ends if _ECHO not in _last_line(end[2])), ends[0])


def _failure(group: _Group) -> ProcessFailedError:
    first, status, tail = _first(group)
    text = f"process {first.name} ended with status {status}; the end of {first.log_path}:\n{tail}"
    for child, _ in group.failed:
        line = _last_line(log_tail(child.log_path, child.log_start))
        if child is not first and _ECHO in line:
            text += f"\n{child.name} said: {line}"
    return ProcessFailedError(text, status)


def _reason(group: _Group) -> str:
    """`_failure` in one line."""
    first, status, tail = _first(group)
    return f"{first.name} ended with status {status}; restarted; it said: {_last_line(tail)}"


def _last_line(text: str) -> str:
    return text.splitlines()[-1]


def _last_words(child: _Child) -> str:
    """What a process said of its error, in its own words where they are ours."""
    tail = log_tail(child.log_path, child.log_start)
    _, found, words = f"\n{tail}".rpartition(f"\n{_ERROR}")
    return (
        f"{words.strip()} (said by process {child.name}, in {child.log_path})"
        if found
        else (f"process {child.name} can't be started with these settings; the end of {child.log_path}:\n{tail}")
    )
