"""Runs on a SLURM cluster: described, submitted, asked about and stopped."""

from __future__ import annotations

import socket
from pathlib import Path

from learner_jax.runtime import printable, write_whole
from tools.assembly import RunPaths, Start, preflight, run_paths
from tools.launch import slurm_commands
from tools.launch.checks import require_launchable
from tools.launch.local_run import in_charge, take_up
from tools.launch.progress import progress_line
from tools.launch.shown import command_lines, role_lines
from tools.launch.slurm import SlurmPlacement, script
from tools.launch.started import LaunchError, Started, read_started

_ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "STOPPED")
#: stands in a dry run for what only the job knows
_FIRST_HOST = "FIRST_HOST"


class Slurm:
    """A SLURM cluster, reached by the commands of this host."""

    def start(self, start: Start, *, dry: bool, out: Path | None = None) -> int:
        """Submits the run's job."""
        config, paths = start.config, run_paths(start.config)
        require_launchable(config, paths, "slurm")
        if dry:
            self._show(start, paths)
            preflight("learner", config, paths)
            return 0
        self._require_idle(paths)
        preflight("learner", config, paths)
        with in_charge(paths):
            take_up(start, paths)
        text = script(config, paths)
        write_whole(paths.directory / "job.sbatch", text)
        job = slurm_commands.submit(text, config)
        Started("slurm", job, socket.gethostname()).write(paths)
        print(printable(f"job {job} is queued; ask by: python -m tools.launch status {paths.directory}"))
        return 0

    def status(self, paths: RunPaths) -> str:
        found = slurm_commands.states(_job(paths))
        lines = [f"  {state} {hosts or '-'} {reason}" for state, hosts, reason in found]
        told = "\n".join(lines) or "  SLURM knows of it no more"
        return printable(f"slurm: job {_job(paths)}\n{told}\n{progress_line(paths)}", keep_lines=True)

    def stop(self, paths: RunPaths) -> str:
        """Raises `LaunchError` if the job has ended."""
        job = _job(paths)
        if not _is_active(job):
            raise LaunchError(f"job {job} has ended: there is nothing to stop")
        slurm_commands.ask_to_stop(job)
        return f"asked job {job} to save and end"

    def _require_idle(self, paths: RunPaths) -> None:
        started = read_started(paths) if paths.directory.is_dir() else None
        if started is not None and started.on == "slurm" and _is_active(started.job):
            raise LaunchError(f"job {started.job} works on {paths.directory}: stop it first, or wait for its end")

    def _show(self, start: Start, paths: RunPaths) -> None:
        config = start.config
        place = SlurmPlacement(config, paths, address=_FIRST_HOST)
        told = sorted(slurm_commands.submission_environment(config))
        for line in (
            *("# roles", *role_lines(config)),
            *("\n# job.sbatch", script(config, paths)),
            *(
                f"# steps that the job's program starts; {_FIRST_HOST} is known then",
                *command_lines(config, paths, place),
            ),
            *("\n# environment variables of the job (names only)", f"  {' '.join(told)}"),
        ):
            print(printable(line, keep_lines=True))


def _job(paths: RunPaths) -> str:
    started = read_started(paths)
    if started is None or started.on != "slurm" or not started.job.isdigit():
        raise LaunchError(f"{paths.directory} was not launched on SLURM")
    return started.job


def _is_active(job: str) -> bool:
    return any(state in _ACTIVE for state, _, _ in slurm_commands.states(job))
