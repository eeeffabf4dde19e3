"""Runs a command so that neither it nor anything it started can outlive its supervisor.

    python -m serving_bridge.processes.guard [--grace SECONDS] [--stop-signal N] [--lifeline FD]
                                             [--folder PATH --lock FD] -- COMMAND...

The guard stands between supervisor and command. When the command ends, the guard is told to stop, or the supervisor
dies (also by kill -9), the command gets SIGTERM, a grace period, and then every descendant gets SIGKILL. Descendants
that detach are found too: the guard is their subreaper. The folder is removed when all have ended. Linux only; imports
only the standard library, so that it starts in milliseconds and nothing that is installed can keep it from starting.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: SIGUSR2 is what srun passes on; it takes the others as an order to kill.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
#: asks a guard for SIGKILL at once
_KILL_NOW = signal.SIGUSR1
_POLL_S = 0.5
_LEFTOVER_GRACE_S = 2.0
_KILL_TIMEOUT_S = 10.0
#: inherited by every process under one guard, so that they can be found even after the guard itself was killed
_MARK = "WEIR_GUARD_ID"
#: vLLM's processes name themselves by setproctitle, which writes over the environment that /proc shows unless told this
_KEEPS_ENVIRONMENT = {"SPT_NOENV": "1"}


class GuardError(RuntimeError):
    """The guard can't start or stop a command."""


class Folder(Protocol):
    """What `private_folder.PrivateFolder` is, as far as a guard needs it."""

    path: Path
    lock: int

    def close(self) -> None: ...

    def remove(self) -> None: ...


class GuardedProcess:
    """A command under a guard of its own. Start, watch and stop it from Python.

    Args:
      command: program and arguments.
      env: the whole environment of the command.
      log_path: file that its output is appended to.
      grace_s: time between SIGTERM and SIGKILL.
      folder: removed when the command and all its descendants have ended; this closes it.
      stop_signal: asks the command to end; where it is not SIGTERM, that is the order to end at once, before SIGKILL.

    Attributes:
      pid: the guard's process id.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: str | Path,
        grace_s: float,
        folder: Folder | None = None,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        self.command = list(command)
        self._folder = folder
        self._mark = uuid.uuid4().hex
        self._swept = False
        lifeline, self._lifeline = os.pipe()
        # By path and isolated: quick, and found from any working directory without touching the command's environment.
        guard = [*guarded(grace_s=grace_s, stop_signal=stop_signal), "--lifeline", str(lifeline)]
        inherited = [lifeline]
        if folder is not None:
            guard += ["--folder", str(folder.path), "--lock", str(folder.lock)]
            inherited.append(folder.lock)
        try:
            with open(log_path, "ab") as log:
                self._process = subprocess.Popen(
                    [*guard, "--", *self.command],
                    env={**env, **_KEEPS_ENVIRONMENT, _MARK: self._mark},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=inherited,
                    start_new_session=True,
                )
        except OSError as error:
            os.close(self._lifeline)
            if folder is not None:
                folder.remove()
            raise GuardError(f"can't start {self.command[0]}: {error}") from error
        finally:
            os.close(lifeline)
            if folder is not None:
                folder.close()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Exit status of the command (128 + signal if it was killed), None while it or a descendant runs."""
        status = self._process.poll()
        if status is None:
            return None
        if not self._swept:
            self._swept = True
            os.close(self._lifeline)
            if status < 0:  # the guard itself was killed and could not clean up
                kill_marked(self._mark)
                if self._folder is not None:
                    self._folder.remove()
        return status if status >= 0 else 128 - status

    def terminate(self) -> None:
        """Asks the command to end; SIGKILL follows after the grace period."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the command and all its descendants now."""
        self._signal(_KILL_NOW)

    def destroy(self) -> None:
        """Ends guard, command and all descendants by SIGKILL from here, for a guard that does not do it itself.

        Raises:
          GuardError: some outlived it.
        """
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(_KILL_TIMEOUT_S)
        self.poll()
        kill_marked(self._mark)

    def wait(self, timeout_s: float) -> int:
        """Waits for the end of the command and all its descendants.

        Raises:
          GuardError: it did not end in time.
        """
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise GuardError(f"{self.command[0]} (guard {self.pid}) did not end within {timeout_s} s") from None
        status = self.poll()
        assert status is not None
        return status

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            self._process.send_signal(number)


def guarded(
    *, grace_s: float, stop_signal: int = signal.SIGTERM, python: str = sys.executable, script: str = __file__
) -> list[str]:
    """The command line of a guard, up to its `--`.

    Args:
      python, script: where the guard will run, if not here.
    """
    signals = ["--stop-signal", str(int(stop_signal))] if stop_signal != signal.SIGTERM else []
    return [python, "-I", "-S", script, "--grace", str(grace_s), *signals]


def run(command: Sequence[str], *, grace_s: float, lifeline: int | None, stop_signal: int = signal.SIGTERM) -> int:
    """Body of the guard process: runs the command to its end, or to that of the supervisor; returns its status."""
    supervisor = os.getppid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    for number in (*_STOP_SIGNALS, _KILL_NOW, signal.SIGCHLD):
        signal.signal(number, _only_wake)
    guard = os.getpid()
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=lambda: _die_with(guard)
        ).pid
    except OSError as error:
        print(f"guard: can't start {command[0]}: {error}", file=sys.stderr, flush=True)
        return 127
    status: int | None = None
    deadline: float | None = None
    watched = [wakeup] if lifeline is None else [wakeup, lifeline]
    while status is None:
        wait_s = _POLL_S if deadline is None else max(0.0, min(_POLL_S, deadline - time.monotonic()))
        ready = select.select(watched, [], [], wait_s)[0]
        numbers = set(os.read(wakeup, 4096)) if wakeup in ready else set()
        lost = (lifeline is not None and lifeline in ready) or os.getppid() != supervisor
        status = _reap(child)
        if _KILL_NOW in numbers or (deadline is not None and time.monotonic() >= deadline):
            break
        if deadline is None and (lost or numbers.intersection(_STOP_SIGNALS)):
            deadline = time.monotonic() + grace_s
            _send([child], stop_signal)
            watched = [wakeup]
    if status is None and stop_signal != signal.SIGTERM:
        status = _end_at_once(child)
    if status is not None:
        _end_leftovers(min(grace_s, _LEFTOVER_GRACE_S))
    found = _kill_descendants(child)
    return status if status is not None else found


def descendants(root: int) -> list[int]:
    """Process ids of all living descendants of `root`, from /proc."""
    children: dict[int, list[int]] = {}
    for pid in _process_ids():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        for pid in children.get(queue.pop(), ()):
            found.append(pid)
            queue.append(pid)
    return found


def kill_marked(mark: str) -> None:
    """Kills every process that carries a guard's mark in its environment. Raises `GuardError` if some stay."""
    entry = f"{_MARK}={mark}".encode()
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while alive := [pid for pid in _process_ids() if pid != os.getpid() and entry in _environment(pid)]:
        _send(alive, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise GuardError(f"processes {alive} outlived SIGKILL for {_KILL_TIMEOUT_S} s")
        time.sleep(0.02)


def _process_ids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    """A process's environment; empty for one that ended or belongs to someone else."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _end_at_once(child: int) -> int | None:
    """Gives a command that passes signals on the time to end what it started elsewhere; its status if it did."""
    _send([child], signal.SIGTERM)
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (status := _reap(child)) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return status


def _end_leftovers(grace_s: float) -> None:
    deadline = time.monotonic() + grace_s
    if left := descendants(os.getpid()):
        _send(left, signal.SIGTERM)
    while descendants(os.getpid()) and time.monotonic() < deadline:
        _reap(-1)
        time.sleep(0.02)


def _kill_descendants(child: int) -> int:
    """SIGKILLs until no descendant is left; new ones may appear while the list is read. Returns the child's status."""
    status = 128 + signal.SIGKILL
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while left := descendants(os.getpid()):
        _send(left, signal.SIGKILL)
        found = _reap(child)
        status = status if found is None else found
        if time.monotonic() > deadline:
            print(f"guard: processes {left} outlived SIGKILL", file=sys.stderr, flush=True)
            break
        time.sleep(0.01)
    found = _reap(child)
    return status if found is None else found


def _reap(child: int) -> int | None:
    """Collects every ended child; returns the exit status of `child` if it is among them."""
    status = None
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            code = os.waitstatus_to_exitcode(raw)
            status = code if code >= 0 else 128 - code


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended meanwhile


def _only_wake(number: int, frame: FrameType | None) -> None:
    """The wakeup pipe carries the signal to the loop."""


def _die_with(guard: int) -> None:
    """In the child before exec: SIGKILL it when the guard dies.

    Only here, where the parent's main thread is the one that waits: the signal follows the parent *thread*, so a guard
    started from a thread pool would be stopped when that thread ends. The guard itself watches its lifeline instead.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        raise GuardError(f"the guard needs Linux (prctl, /proc), got {sys.platform}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise GuardError(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving_bridge.processes.guard", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--stop-signal", type=int, default=int(signal.SIGTERM), help="asks the command to end")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--lifeline", type=int, help="descriptor of a pipe whose end means that the supervisor died")
    parser.add_argument("--folder", help="removed when all processes have ended")
    parser.add_argument("--lock", type=int, help="descriptor that is held open until then")
    parser.add_argument("command", nargs="+", help="program and arguments, after --")
    options = parser.parse_args(arguments)
    try:
        return run(options.command, grace_s=options.grace, lifeline=options.lifeline, stop_signal=options.stop_signal)
    finally:
        if options.folder is not None:
            shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
