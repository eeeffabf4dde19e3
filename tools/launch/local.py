"""Runs on this machine: what `tools.train` does, from the description."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from learner_jax.runtime import printable
from tools.assembly import RunPaths, Start, run_paths
from tools.launch.checks import require_launchable
from tools.launch.local_run import train
from tools.launch.progress import progress_line
from tools.launch.shown import role_lines
from tools.launch.started import LaunchError, Started, process_of, read_started


class Local:
    """This machine. Its scheduler is the operating system: what a role asks for is shown, and not enforced."""

    def start(self, start: Start, *, dry: bool, out: Path | None = None) -> int:
        """Carries the run out, in the foreground."""
        config, paths = start.config, run_paths(start.config)
        if dry:
            for line in ("# roles; this machine enforces no resources", *role_lines(config), ""):
                print(printable(line, keep_lines=True))
        require_launchable(config, paths, "local")
        return train(start, dry=dry)

    def status(self, paths: RunPaths) -> str:
        started = read_started(paths)
        process = None if started is None else process_of(started, socket.gethostname())
        does = "no process carries it out" if process is None else f"process {process.pid} runs"
        return f"local: {does}\n{progress_line(paths)}"

    def stop(self, paths: RunPaths) -> str:
        """Asks once; the process saves and ends in its own time.

        Raises:
          LaunchError: there is no such process.
        """
        started: Started | None = read_started(paths)
        process = None if started is None else process_of(started, socket.gethostname())
        if process is None:
            raise LaunchError(f"no process carries out {paths.directory}: there is nothing to stop")
        process.send_signal(signal.SIGTERM)
        return f"asked process {process.pid} to save and end"
