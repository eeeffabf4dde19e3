"""The processes of a chaos job, found by what they run and by the environment that the job gave them."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

Role = Literal["learner", "worker", "controller", "engine", "core", "proxy", "guard", "other"]

#: in the environment of every process of a job: its folder
MARK = "WEIR_CHAOS_JOB"
#: by a part of the command line; guards carry that of their command, so they come first
_ROLES: tuple[tuple[str, Role], ...] = (
    ("serving_bridge/processes/guard.py", "guard"),
    ("tools.learner", "learner"),
    ("tools.rollout", "worker"),
    ("tools.serve", "controller"),
    ("tools.testing.chaos.server", "proxy"),
    ("tools.testing.fake_vllm.server", "engine"),
    ("vllm.entrypoints", "engine"),
    ("VLLM::", "core"),
)


@dataclass(frozen=True)
class Process:
    """One process; `guards` is what a guard guards, None for others."""

    pid: int
    role: Role
    guards: Role | None = None


def processes(folder: Path) -> list[Process]:
    """All that belong to the job in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile, or is another user's
            if process.pid == os.getpid() or process.environ().get(MARK) != str(folder):
                continue
            command = " ".join(process.cmdline())
            roles = [role for part, role in _ROLES if part in command]
            guards = roles[1] if roles[:1] == ["guard"] and len(roles) > 1 else None
            role = roles[0] if roles else "other"
            found.append(Process(process.pid, "core" if role == "engine" and _is_forked(process) else role, guards))
    return found


def _is_forked(process: psutil.Process) -> bool:
    """Whether it has the command line of its parent, as vLLM's engine core has where its server forks it."""
    parent = process.parent()
    return parent is not None and parent.cmdline() == process.cmdline()


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def pids_of(folder: Path, target: str) -> list[int]:
    """Processes that a fault with this target hits: a role, or "guard of" the engine's proxy."""
    if target == "engine_guard":
        return [p.pid for p in processes(folder) if p.guards == "proxy"]
    return [p.pid for p in processes(folder) if p.role == target]


def stopped(pid: int) -> bool:
    """Whether SIGSTOP holds a process."""
    return _status(pid) == psutil.STATUS_STOPPED


def alive(pid: int) -> bool:
    """Whether a process is there, goes on, and is no zombie."""
    return _status(pid) not in (None, psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


def _status(pid: int) -> str | None:
    try:
        return psutil.Process(pid).status()
    except psutil.Error:
        return None


def wake_all(folder: Path) -> None:
    """Lets whatever is stopped go on."""
    send([p.pid for p in processes(folder) if stopped(p.pid)], signal.SIGCONT)
