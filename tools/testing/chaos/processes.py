"""The processes of a chaos job, found by what they run and by the environment that the job gave them."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    mark = f"{MARK}={folder}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            roles = [role for part, role in _ROLES if part in command]
            guards = roles[1] if roles[:1] == ["guard"] and len(roles) > 1 else None
            found.append(Process(int(entry.name), roles[0] if roles else "other", guards))
    return found


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
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def wake_all(folder: Path) -> None:
    """Lets whatever is stopped go on."""
    send([p.pid for p in processes(folder) if stopped(p.pid)], signal.SIGCONT)
