"""Where a run can be launched, by name: each starts it, says what it does, and stops it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tools.assembly import RunPaths, Start
from tools.launch.kubernetes_backend import Kubernetes
from tools.launch.local import Local
from tools.launch.slurm_backend import Slurm
from tools.launch.started import LaunchError, read_started
from tools.launch.xmanager_backend import XManager


class Backend(Protocol):
    """One place to launch runs on."""

    def start(self, start: Start, *, dry: bool, out: Path | None = None) -> int:
        """Starts the run, or says what would be run; returns the exit status.

        Args:
          out: folder for what a dry run writes, where it writes anything.
        """

    def status(self, paths: RunPaths) -> str:
        """What the run does, in a few lines."""

    def stop(self, paths: RunPaths) -> str:
        """Asks the run to save and end; says what was done."""


BACKENDS: Mapping[str, Backend] = {
    "local": Local(),
    "slurm": Slurm(),
    "kubernetes": Kubernetes(),
    "xmanager": XManager(),
}


def backend_of(paths: RunPaths) -> Backend:
    """Where the run was launched last; this machine if `tools.launch` never did.

    Raises:
      LaunchError: nothing of that name is known.
    """
    started = read_started(paths)
    name = started.on if started is not None else "local"
    if name not in BACKENDS:
        raise LaunchError(f"the run was launched on {name!r}, expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
