"""What a run keeps of how it was launched: `launch.json` in its directory, for status, logs, stop and resume."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import psutil

from learner_jax.runtime import SHARED_MODE, WeirError, write_whole
from tools.assembly import RunPaths

_MAX_BYTES = 65_536


class LaunchError(WeirError, RuntimeError):
    """A run can't be launched, found, asked or stopped; says why, and what to do."""

    can_heal = False


@dataclass(frozen=True)
class Started:
    """How a run was launched last.

    Attributes:
      on: "local", "slurm", ...
      job: the cluster's id of the job; on this machine the process id.
      host: where it was launched.
      created_s: start of that process, in seconds of the epoch; 0 where a cluster has ids of its own.
    """

    on: str
    job: str
    host: str = ""
    created_s: float = 0.0

    def write(self, paths: RunPaths) -> None:
        write_whole(paths.directory / "launch.json", json.dumps(asdict(self)), mode=SHARED_MODE)


def read_started(paths: RunPaths) -> Started | None:
    """How the run was launched last; None if `tools.launch` never did.

    Raises:
      LaunchError: the file is there and says something else.
    """
    path = paths.directory / "launch.json"
    try:
        with path.open(encoding="utf-8") as file:
            found = json.loads(file.read(_MAX_BYTES))
        started = Started(**found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise LaunchError(f"{path} can't be read: {error}; remove it if no job of this run is left") from None
    texts = (started.on, started.job, started.host)
    if not all(isinstance(text, str) and text.isprintable() for text in texts) or not isinstance(
        started.created_s, int | float
    ):
        raise LaunchError(f"{path} is not what tools.launch writes; remove it if no job of this run is left")
    return started


def this_process(host: str) -> Started:
    """The record of a run that this process carries out."""
    process = psutil.Process()
    return Started("local", str(process.pid), host, process.create_time())


def process_of(started: Started, host: str) -> psutil.Process | None:
    """The process that carries the run out; None if it has ended. Raises `LaunchError` if it is another host's."""
    if started.host != host:
        raise LaunchError(f"the run was launched on {started.host}: ask there, this is {host}")
    try:
        process = psutil.Process(int(started.job))
        same = abs(process.create_time() - started.created_s) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return None
    return process if same else None
