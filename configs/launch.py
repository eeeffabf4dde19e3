"""Settings of where a run's processes run: the roles, what each gets, and what all hosts see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from learner_jax.contracts import Settings
from serving_bridge.processes import is_secret

RoleName = Literal["learner", "rollout", "fleet", "serving", "database"]

#: In the order in which they start.
ROLES: tuple[RoleName, ...] = ("database", "fleet", "serving", "learner", "rollout")
#: Roles whose program is not one of Weir's.
_NEED_COMMAND: tuple[RoleName, ...] = ("serving", "database")
#: seconds; SLURM also signals up to a minute earlier than asked
_START_S = 120
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_REFERENCE = re.compile(r"(env:[A-Za-z_][A-Za-z0-9_]{0,199}|file:/\S{1,4000})")
Option = Annotated[str, Field(pattern=r"^--[a-z][a-z0-9-]*(=[A-Za-z0-9_.,:/@%+*\[\]-]+)?$", max_length=500)]
#: What the launcher itself says to SLURM.
# fmt: off
_OURS = frozenset((
    "array", "begin", "chdir", "cpus-per-task", "dependency", "error", "export", "export-file", "gres", "het-group",
    "hold", "input", "job-name", "mem", "nodes", "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output",
    "parsable", "requeue", "signal", "test-only", "time", "wait", "wrap",
))
# fmt: on


def is_reference(value: str) -> bool:
    """Whether a variable's value says where it is (`env:NAME` or `file:/PATH`), and not what it is."""
    return _REFERENCE.fullmatch(value) is not None


class RoleSettings(Settings):
    """One role of a run: on how many hosts it runs, and what each of them gives it."""

    hosts: int = Field(1, ge=1, le=10_000, description="hosts, with one process of the role on each")
    cpus: int = Field(gt=0, le=4096, description="CPU cores on each host")
    memory_gib: int = Field(gt=0, le=65_536, description="memory on each host, GiB")
    devices: int = Field(0, ge=0, le=64, description="accelerators on each host; 0 for CPUs alone")
    device: Literal["gpu", "tpu"] = Field("gpu", description="what the accelerators are")
    device_type: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]{0,100}$",
        description="kind of accelerator, as the cluster names it: a type of SLURM's gpu, a label of Kubernetes' nodes",
    )
    topology: str = Field(
        "", pattern=r"^([0-9]{1,4}(x[0-9]{1,4}){0,2})?$", description="shape of a TPU slice on Kubernetes, such as 2x4"
    )
    beside: Literal["learner", "rollout", "fleet"] | None = Field(
        None, description="another role whose first hosts it shares; hosts of its own if unset"
    )
    venv: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9_./@+-]{1,1000})?$",
        description="Python environment on its hosts, from / on; empty for the one that launches the run",
    )
    image: str = Field(
        "", pattern=r"^[A-Za-z0-9_.:/@+-]{0,300}$", description="container image, where the cluster runs containers"
    )
    variables: dict[str, str] = Field(
        {}, description="environment variables; secrets only by reference, read where the role starts"
    )
    command: tuple[str, ...] = Field(
        (),
        description="program and arguments of a serving or database role; {address} is its host's, {index} its number",
    )
    options: tuple[Option, ...] = Field(
        (), description="more of sbatch's options for its hosts, such as --partition=gpu"
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        problems = [*_variable_problems(self.variables), *_option_problems(self.options)]
        if any(not part.isprintable() for part in self.command):
            problems.append("command: expected printable text")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class LearnerRoleSettings(RoleSettings):
    """The learner's hosts: as many as learner.hosts.count says."""

    hosts: int | None = Field(None, ge=1, le=10_000, description="hosts; learner.hosts.count if unset")  # type: ignore[assignment]


class LaunchSettings(Settings):
    """Where the processes of a run are started, for `tools.launch`."""

    shared: tuple[str, ...] = Field(
        (), description="mounts, from / on, that every host has under these names; all that the run keeps lies in them"
    )
    time_limit_s: float = Field(
        86_400, ge=180, description="seconds after which the cluster ends the job; it is queued again, and goes on"
    )
    stop_ahead_s: float = Field(
        180, ge=30, description="seconds before time_limit_s at which the job is told to save and end"
    )
    max_requeues: int = Field(100, ge=0, description="times that a job is queued again when its time is over")
    namespace: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="namespace on Kubernetes")
    storage_gib: int = Field(1024, gt=0, description="storage claimed for each of `shared` on Kubernetes, GiB")
    learner: LearnerRoleSettings | None = None
    rollout: RoleSettings | None = None
    fleet: RoleSettings | None = None
    serving: RoleSettings | None = None
    database: RoleSettings | None = None

    def roles(self) -> dict[RoleName, RoleSettings]:
        """The roles that are described, in the order in which they start."""
        found = {name: getattr(self, name) for name in ROLES}
        return {name: role for name, role in found.items() if role is not None}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [f"shared: {folder!r} is not absolute" for folder in self.shared if not folder.startswith("/")]
        if self.stop_ahead_s + _START_S > self.time_limit_s:
            problems.append(
                f"stop_ahead_s is {self.stop_ahead_s:g} and time_limit_s {self.time_limit_s:g}: a job takes up to "
                f"{_START_S} s to start, so set the first lower by at least that"
            )
        for name, role in self.roles().items():
            problems += [f"{name}.{problem}" for problem in self._role_problems(name, role)]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _role_problems(self, name: RoleName, role: RoleSettings) -> Iterator[str]:
        if name in _NEED_COMMAND and not role.command:
            yield "command is empty: give the program that this role runs"
        if name not in _NEED_COMMAND and role.command:
            yield "command is given, but Weir's own program runs here: remove it"
        if not role.beside:
            return
        host = getattr(self, role.beside)
        if host is None or role.beside == name or host.beside:
            yield f"beside is {role.beside!r}: expected another role that is described and has hosts of its own"
        elif host.hosts is not None and role.hosts > host.hosts:
            yield f"hosts is {role.hosts}, but {role.beside} beside which it runs has {host.hosts}"
        elif role.options:
            yield f"options are given, but its hosts are those of {role.beside}: give them there"


def _variable_problems(variables: dict[str, str]) -> Iterator[str]:
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name):
            yield f"variables: {name[:60]!a} is no name of an environment variable"
        elif not is_reference(value) and value.startswith(("env:", "file:")):
            yield f'variables.{name}: expected "env:NAME" or "file:/PATH"'
        elif not value.isprintable():
            yield f"variables.{name}: expected printable text"
        elif not is_reference(value) and is_secret(name, value):
            yield f'variables.{name} may be a secret, and would be kept with the run: give "env:NAME" or "file:/PATH"'


def _option_problems(options: tuple[str, ...]) -> Iterator[str]:
    for option in options:
        name = option.partition("=")[0].removeprefix("--")
        if name in _OURS:
            yield f"options: --{name} is set by Weir; remove it"
