"""What can be known of a launch before anything is allocated: roles, folders that all hosts see, secrets, database."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from configs.launch import RoleName, is_reference
from configs.paths import hub_model
from configs.schema import Config
from serving_bridge.checks import Finding
from serving_bridge.database import is_postgres
from serving_bridge.storage import is_url
from tools.assembly import PreflightError, RunPaths, hosts_of
from tools.role import RoleError, value_of

Where = Literal["local", "slurm", "kubernetes", "xmanager"]

_NEEDED: tuple[RoleName, ...] = ("learner", "fleet", "rollout")
_RESOURCES = "cpus and memory_gib"


def require_launchable(config: Config, paths: RunPaths, on: Where) -> None:
    """Looks at [launch] as a whole.

    Raises:
      PreflightError: all that is certain to fail.
    """
    if found := list(launch_findings(config, paths, on)):
        raise PreflightError(found)


def launch_findings(config: Config, paths: RunPaths, on: Where) -> Iterator[Finding]:
    """All that can't work, each with the setting to change."""
    if on != "kubernetes":
        yield from _secret_findings(config, here=on != "slurm")
    if on == "xmanager" and config.serving.hosts_per_replica > 1:
        yield Finding(
            "serving.hosts_per_replica",
            "1 under XManager",
            str(config.serving.hosts_per_replica),
            "use SLURM or Kubernetes",
        )
    if on in ("local", "xmanager"):
        return
    yield from _role_findings(config)
    if on == "slurm":
        yield from _slurm_findings(config, paths)
    if on == "kubernetes":
        yield from _pod_findings(config)
    yield from _folder_findings(config, paths)
    yield from _database_findings(config, paths)


def _role_findings(config: Config) -> Iterator[Finding]:
    described = config.launch.roles()
    for name in _NEEDED:
        if name not in described:
            yield Finding(f"launch.{name}", f"a table with {_RESOURCES}", "none", f"add [launch.{name}]")
    if config.learner.hosts.coordinator:
        yield Finding(
            "learner.hosts.coordinator",
            "to be empty",
            config.learner.hosts.coordinator,
            "remove it: which hosts the learner gets is not known before",
        )


def _secret_findings(config: Config, *, here: bool) -> Iterator[Finding]:
    """References that stand for nothing. A file may be there on the role's hosts alone."""
    for name, role in config.launch.roles().items():
        for variable, value in role.variables.items():
            if not is_reference(value) or (value.startswith("file:") and not here):
                continue
            try:
                value_of(value, os.environ)
            except RoleError as error:
                yield Finding(f"launch.{name}.variables.{variable}", "", str(error), "")


def _slurm_findings(config: Config, paths: RunPaths) -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("sbatch", "SLURM's commands on this host", "no sbatch", "launch from a host of the cluster")
    if not all(character.isalnum() or character in "/._-+@" for character in str(paths.directory)):
        yield Finding(
            "run.directory", "letters, digits and / . _ - + @", str(paths.directory), "SLURM reads others as patterns"
        )
    for name, role in config.launch.roles().items():
        if role.image:
            yield Finding(f"launch.{name}.image", "a venv on SLURM", role.image, f"set launch.{name}.venv instead")


def _pod_findings(config: Config) -> Iterator[Finding]:
    for name, role in config.launch.roles().items():
        if not role.image:
            yield Finding(f"launch.{name}.image", "a container image", "none", "name one that holds Weir")
        for variable, value in role.variables.items():
            if value.startswith("file:"):
                yield Finding(
                    f"launch.{name}.variables.{variable}", '"env:KEY"', value, "name a key of the run's Secret instead"
                )


def _folder_findings(config: Config, paths: RunPaths) -> Iterator[Finding]:
    """Files and folders of the run that do not lie in a folder which all hosts see."""
    shared = [Path(folder) for folder in config.launch.shared]
    if not shared:
        yield Finding("launch.shared", "the folders that all hosts see", "none", "give their absolute paths")
        return
    for setting, place in places(config, paths).items():
        if not any(place.is_relative_to(folder) for folder in shared):
            yield Finding(
                setting,
                f"to lie in a folder that all hosts see ({', '.join(map(str, shared))})",
                str(place),
                "move it, or add its folder to launch.shared",
            )


def places(config: Config, paths: RunPaths) -> dict[str, Path]:
    """Setting -> file or folder that processes on several hosts open."""
    found = {
        "run.directory": paths.directory,
        "store.weights": None if is_url(paths.weights) else Path(paths.weights),
        "store.blobs": None if is_url(paths.blobs) else Path(paths.blobs),
        "model.path": None if hub_model(config.model.path) else _optional(config.model.path),
        **{setting: Path(path) for setting, path in config.task.all_files().items()},
        "learner.loss.kl.reference": _optional(config.learner.loss.kl.reference),
        "serving.keys": _optional(config.serving.keys),
    }
    return {setting: place for setting, place in found.items() if place is not None}


def _optional(text: str) -> Path | None:
    return Path(text) if text else None


def _database_findings(config: Config, paths: RunPaths) -> Iterator[Finding]:
    rollout = config.launch.rollout
    together = rollout is not None and rollout.beside == "learner" and rollout.hosts == 1
    if is_postgres(paths.database) or (together and hosts_of(config, "learner") == 1):
        return
    yield Finding(
        "store.database",
        "postgresql://user@host/database, since the learner and its rollout workers run on several hosts",
        f"the SQLite file {paths.database}",
        "name a PostgreSQL database, or set launch.rollout.beside to learner",
    )
