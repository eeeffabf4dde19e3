"""A run as one job of SLURM: its components, the script that sbatch takes, and its processes as steps of srun.

One heterogeneous job, and not jobs that depend on each other: a learner without a fleet, or a fleet without a learner,
would hold its devices for nothing. The script runs the job's program (`tools.launch.on_slurm`) on the learner's first
host. That starts every process by an srun of its own, so that one is restarted while the others go on.
"""

from __future__ import annotations

import math
import shlex
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from configs.launch import RoleName, RoleSettings
from configs.paths import hub_model
from configs.schema import Config
from serving_bridge.processes import python_module
from tools.assembly import RunPaths, hosts_of, in_role, python_of

Command = list[str]
#: what the job's program gets when its time is nearly over
OVER_SIGNAL = signal.SIGUSR1


@dataclass(frozen=True)
class Component:
    """Hosts of one kind, with what each gives to all roles on it together."""

    roles: tuple[RoleName, ...]
    hosts: int
    cpus: int
    memory_gib: int
    gres: str
    options: tuple[str, ...]

    def directives(self, config: Config) -> Iterator[str]:
        """What `#SBATCH` says of these hosts."""
        yield f"--nodes={self.hosts}"
        yield "--ntasks-per-node=1"
        yield f"--cpus-per-task={self.cpus}"
        yield f"--mem={self.memory_gib}G"
        yield f"--time={math.ceil(config.launch.time_limit_s / 60)}"
        if self.gres:
            yield f"--gres={self.gres}"
        yield from self.options


def components(config: Config) -> list[Component]:
    """The hosts of the job by kind; the learner's come first, where the job's program runs."""
    roles = config.launch.roles()
    homes = [name for name, role in roles.items() if not role.beside]
    learner = roles["learner"].beside or "learner"
    homes.sort(key=lambda name: name != learner)
    found = []
    for home in homes:
        own = [name for name in roles if name == home or roles[name].beside == home]
        gres = [text for name in own if (text := gres_of(roles[name]))]
        found.append(
            Component(
                roles=tuple(own),
                hosts=hosts_of(config, home),
                cpus=sum(roles[name].cpus for name in own),
                memory_gib=sum(roles[name].memory_gib for name in own),
                gres=_added(gres),
                options=roles[home].options,
            )
        )
    return found


def gres_of(role: RoleSettings) -> str:
    """A role's devices on a host in SLURM's words; empty for none."""
    kind = f"{role.device}:{role.device_type}" if role.device_type else role.device
    return f"{kind}:{role.devices}" if role.devices else ""


def _added(several: Sequence[str]) -> str:
    """Devices of one kind are added up."""
    counts: dict[str, int] = {}
    for one in several:
        kind, _, count = one.rpartition(":")
        counts[kind] = counts.get(kind, 0) + int(count)
    return ",".join(f"{kind}:{count}" for kind, count in counts.items())


def script(config: Config, paths: RunPaths) -> str:
    """The text that sbatch takes."""
    whole = [
        f"--job-name=weir-{config.run.name}",
        f"--chdir={paths.directory}",
        f"--output={paths.logs}/slurm-%j.log",
        "--open-mode=append",
        "--requeue",
        "--export=ALL",
        f"--signal=B:{OVER_SIGNAL.name.removeprefix('SIG')}@{math.ceil(config.launch.stop_ahead_s)}",
    ]
    parts = ["\n".join(f"#SBATCH {line}" for line in one.directives(config)) for one in components(config)]
    program = shlex.join(program_command(config, paths))
    head = "\n".join(f"#SBATCH {line}" for line in whole)
    hosts = "\n#SBATCH hetjob\n".join(parts)
    ignored = f"trap '' {OVER_SIGNAL.name.removeprefix('SIG')}  # until the program takes it"
    return f"#!/bin/bash\n# Written by tools.launch from {paths.config}.\n{head}\n{hosts}\n{ignored}\nexec {program}\n"


def program_command(config: Config, paths: RunPaths) -> Command:
    """The job's program, on the learner's first host."""
    python = python_of(config.launch.roles()["learner"])
    return [python, *python_module("tools.launch.on_slurm")[1:], "--config", str(paths.config)]


class SlurmPlacement:
    """Processes as steps of one SLURM job, each on the host of its role and number.

    Args:
      address: of the learner's first host.
    """

    is_elsewhere = True
    #: srun passes it on; SIGTERM has it kill the step
    stop_signal = int(signal.SIGUSR2)

    def __init__(self, config: Config, paths: RunPaths, *, address: str) -> None:
        self.address = address
        self._roles = config.launch.roles()
        self._components = components(config)
        model = "" if hub_model(config.model.path) else config.model.path
        task = config.task.all_files().values()
        files = (paths.config, model, *task, config.learner.loss.kl.reference)
        self._need = [str(file) for file in files if file]

    def put(self, role: RoleName, host: int, command: Sequence[str], *, grace_s: float) -> Command:
        settings = self._told(role)
        python = python_of(settings)
        guard = [python, *python_module("serving_bridge.processes")[1:], "--grace", f"{grace_s:g}", "--"]
        inner = in_role(settings, command, towards=self.address, need=self._need)
        return [*self._srun(role, host), *guard, *inner]

    def _told(self, role: RoleName) -> RoleSettings:
        """The role, whose JAX takes all its GPUs: under SLURM it would take one for each process of a host."""
        settings = self._roles[role]
        if role != "learner" or settings.device != "gpu" or not settings.devices:
            return settings
        devices = {"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, range(settings.devices)))}
        return settings.model_copy(update={"variables": {**devices, **settings.variables}})

    def _srun(self, role: RoleName, host: int) -> Command:
        number, _ = next((n, c) for n, c in enumerate(self._components) if role in c.roles)
        settings = self._roles[role]
        group = [f"--het-group={number}"] if len(self._components) > 1 else []
        gres = [f"--gres={gres_of(settings)}"] if settings.devices else []
        return [
            *("srun", *group, "--nodes=1", "--ntasks=1", f"--relative={host}", "--overlap", "--mem=0"),
            *(f"--cpus-per-task={settings.cpus}", *gres, f"--job-name={role}-{host}", "--input=none"),
        ]
