"""Where the processes of a run's roles run, and how a command becomes one of them: here, unless told else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from configs.launch import RoleName, RoleSettings, is_reference
from configs.schema import Config
from serving_bridge.processes import python_module
from serving_bridge.storage import storage_variables
from tools.assembly.paths import run_paths

Command = list[str]
_LOOPBACK = "127.0.0.1"
_ENV = "env:"


class Placement(Protocol):
    """Puts commands on hosts.

    Attributes:
      address: of the host that this program and the learner's host 0 are on, for the other hosts.
      is_elsewhere: whether roles are on other hosts than this program.
      stop_signal: asks one of the processes to end.
    """

    address: str
    is_elsewhere: bool
    stop_signal: int

    def put(self, role: RoleName, host: int, command: Sequence[str], *, grace_s: float) -> Command:
        """The command that runs `command` as a process of the role, on its host of this number.

        Args:
          grace_s: seconds that the process gets to end when it is asked to.
        """


class Here:
    """All roles on this machine."""

    address, is_elsewhere, stop_signal = _LOOPBACK, False, int(signal.SIGTERM)

    def __init__(self, config: Config) -> None:
        self._roles = config.launch.roles()

    def put(self, role: RoleName, host: int, command: Sequence[str], *, grace_s: float) -> Command:
        settings = self._roles.get(role)
        if settings is None or not (settings.variables or settings.venv or settings.command):
            return list(command)
        return in_role(settings, command)


def hosts_of(config: Config, role: RoleName) -> int:
    """On how many hosts a role runs; 1 where [launch] does not describe it."""
    if role == "learner":
        return config.learner.hosts.count
    settings = config.launch.roles().get(role)
    return 1 if settings is None else settings.hosts


def fleets_of(config: Config) -> int:
    """How many fleets there are: a replica of several hosts takes as many of the role's."""
    return hosts_of(config, "fleet") // config.serving.hosts_per_replica


def in_role(
    settings: RoleSettings, command: Sequence[str], *, towards: str = _LOOPBACK, need: Sequence[str] = ()
) -> Command:
    """The command as a process of the role on its host: with its Python, variables and address (`tools.role`).

    Args:
      towards: the run's first host.
      need: files and folders that the host must see.
    """
    python = python_of(settings)
    inner = [python if part == sys.executable else part for part in command]
    told = [part for name, value in settings.variables.items() for part in ("--variable", f"{name}={value}")]
    told += [part for path in need for part in ("--need", path)]
    if any("{address}" in part for part in inner):
        told += ["--towards", towards]
    return [python, *python_module("tools.role")[1:], *told, "--", *inner]


def python_of(settings: RoleSettings) -> str:
    """The Python of a role: that of its environment, else this one."""
    return f"{settings.venv}/bin/python" if settings.venv else sys.executable


def variables_to_hand_on(config: Config) -> tuple[str, ...]:
    """Names of variables of this process that roles refer to (`env:NAME`) or need for storage and traces, in order."""
    return tuple(sorted({*_named(config), *_of_storage(config), *_of_traces(config)}))


def _of_storage(config: Config) -> Iterable[str]:
    """Names of the variables by which object storage is reached, where the run uses it."""
    return storage_variables(os.environ) if run_paths(config).in_storage else ()


def _of_traces(config: Config) -> Iterable[str]:
    """Names of the variables that say where traces go, where the run is traced."""
    return (name for name in os.environ if name.startswith("OTEL_")) if config.telemetry.traces else ()


def _named(config: Config) -> Iterator[str]:
    for settings in config.launch.roles().values():
        for value in settings.variables.values():
            if is_reference(value) and value.startswith(_ENV):
                yield value.removeprefix(_ENV)
