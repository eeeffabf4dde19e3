"""CPU time and memory of a tree of processes, by what each process is for.

A process that ends keeps what it had used when it was last looked at. So what a process does in its last half second
is not counted.

Not covered: work that a process has others do, such as the kernel's own threads or a database server that runs already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

#: module behind -m, or a part of the process's name -> what the process is for
_MODULES: Final[Mapping[str, str]] = {
    "tools.train": "supervisor",
    "tools.serve": "fleet",
    "tools.learner": "learner",
    "tools.rollout": "rollout worker",
    "tools.convert": "conversion",
}
#: what is not known and has no parent that is: the guard of the whole job
_JOB = "supervisor"
_SERVER_MODULE = "vllm.entrypoints.openai.api_server"
SERVER, ENGINE, WORKER = "vLLM server", "vLLM engine", "vLLM worker"
_NAMES: Final[Mapping[str, str]] = {"EngineCore": ENGINE, "VLLM::Worker": WORKER, "postgres": "database"}
_BELOW: Final[Mapping[str, str]] = {SERVER: ENGINE, ENGINE: WORKER, WORKER: WORKER}

#: (words of the command line, name of the process, role of its parent) -> role
RoleOf = Callable[[Sequence[str], str, str], str]


def weir_role(words: Sequence[str], name: str, parent: str) -> str:
    """What a process of Weir's job is for; what is not known by itself helps its parent."""
    for part, role in _NAMES.items():
        if part in name or any(part in word for word in words[:1]):
            return role
    own = list(words[: words.index("--")] if "--" in words else words)  # what follows is what a guard guards
    module = own[own.index("-m") + 1] if "-m" in own[:-1] else ""
    if _SERVER_MODULE in own:  # the engine may be forked from the server, and then has its command line
        return _BELOW.get(parent, SERVER)
    return _MODULES.get(module, parent)


def peer_role(name: str) -> RoleOf:
    """All processes of a peer count as one."""
    return lambda words, process, parent: name


@dataclass(frozen=True)
class Sample:
    """What a tree of processes had used up to a moment.

    Attributes:
      t: unix seconds.
      cpu_s: CPU seconds since the start, by role.
      memory: bytes by role (PSS: pages that processes share are divided among them); None where it was not looked at.
      load: load average of the minute before.
      machine_s: CPU seconds that all processes of the machine have used since it was started.
    """

    t: float
    cpu_s: Mapping[str, float]
    memory: Mapping[str, int] | None
    load: float
    machine_s: float


class Sampler:
    """Looks at a process and all that descend from it.

    Args:
      root: process id.
    """

    def __init__(self, root: int, role_of: RoleOf, *, clock: Callable[[], float] = time.time) -> None:
        self._root, self._role_of, self._clock = psutil.Process(root), role_of, clock
        self._roles: dict[psutil.Process, str] = {}
        self._cpu_s: dict[psutil.Process, float] = {}

    def sample(self, *, with_memory: bool = False) -> Sample:
        found = self._processes()
        for process in found:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue  # it ended meanwhile: what was seen last counts
            self._cpu_s[process] = times.user + times.system
        by_role: dict[str, float] = {}
        for process, seconds in self._cpu_s.items():
            role = self._roles[process]
            by_role[role] = by_role.get(role, 0.0) + seconds
        memory = self._memory(found) if with_memory else None
        machine = psutil.cpu_times()
        busy_s = (
            machine.user + machine.system + machine.nice + getattr(machine, "irq", 0) + getattr(machine, "softirq", 0)
        )
        return Sample(self._clock(), by_role, memory, psutil.getloadavg()[0], busy_s)

    def _processes(self) -> list[psutil.Process]:
        """The living ones, parents before their children, each with its role."""
        try:
            found = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []
        pids = {process.pid: process for process in found}
        for process in found:
            try:
                with process.oneshot():
                    words, name = process.cmdline(), process.name()
                    parent = pids.get(process.ppid())
            except psutil.Error:
                self._roles.setdefault(process, _JOB)
                continue
            above = self._roles.get(parent, _JOB) if parent is not None else _JOB
            self._roles[process] = self._role_of(words, name, above)
        return found

    def _memory(self, processes: Sequence[psutil.Process]) -> dict[str, int]:
        by_role: dict[str, int] = {}
        for process in processes:
            try:
                pss = process.memory_full_info().pss
            except psutil.Error:
                continue
            role = self._roles[process]
            by_role[role] = by_role.get(role, 0) + pss
        return by_role
