"""The roles of a run in words: where each runs, what it gets, and by which command; secrets as references."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from configs.launch import RoleSettings
from configs.schema import Config
from tools.assembly import Placement, RunPaths, hosts_of, planned, python_of


def role_lines(config: Config) -> Iterator[str]:
    """One paragraph a role: hosts, resources, Python and variables."""
    if not config.launch.roles():
        yield "none has a table in [launch]: every process runs here, with all that this machine has"
    for name, role in config.launch.roles().items():
        yield f"{name}: {_counted(hosts_of(config, name), 'host')}, each with {_resources(role)}" + (
            f"; on hosts of {role.beside}" if role.beside else ""
        )
        yield f"  python      {role.image or python_of(role)}"
        if role.variables:
            told = " ".join(f"{key}={shlex.quote(value)}" for key, value in role.variables.items())
            yield f"  variables   {told}"
        if role.options:
            yield f"  options     {' '.join(role.options)}"


def command_lines(config: Config, paths: RunPaths, place: Placement) -> Iterator[str]:
    """Every process as it would be started, in order."""
    for process in planned(config, paths, place=place):
        again = f"  (started again up to {process.restarts} times an hour)" if process.restarts else ""
        yield f"{process.name}{again}"
        yield from (f"  {shlex.join(command)}" for command in process.commands)


def _resources(role: RoleSettings) -> str:
    devices = f", {_counted(role.devices, f'{role.device_type} {role.device}'.strip())}" if role.devices else ""
    return f"{_counted(role.cpus, 'core')}, {role.memory_gib} GiB{devices}"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"
