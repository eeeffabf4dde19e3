"""Runs through XManager: a plan from the description, launched by `tools/launch/xm_launch.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from configs.schema import Config
from learner_jax.runtime import printable, write_whole
from serving_bridge.processes import process_environment, python_module
from tools.assembly import RunPaths, Start, hosts_of, planned, preflight, run_paths, variables_to_hand_on
from tools.launch.checks import require_launchable
from tools.launch.kubernetes import Pods
from tools.launch.local import Local
from tools.launch.local_run import in_charge, take_up
from tools.launch.started import LaunchError

_SCRIPT = Path(__file__).with_name("xm_launch.py")


class XManager:
    """XManager's local backend; the same plan and script take a cluster.

    The run is a process of this machine, and is asked and stopped as such.
    """

    def __init__(self) -> None:
        self._run = Local()

    def start(self, start: Start, *, dry: bool, out: Path | None = None) -> int:
        """Launches the run, in the foreground; returns XManager's exit status."""
        config, paths = start.config, run_paths(start.config)
        require_launchable(config, paths, "xmanager")
        text = json.dumps(plan(config, paths), indent=1)
        if dry:
            print(printable(text, keep_lines=True))
            return 0
        program = shutil.which("xmanager")
        if program is None:
            raise LaunchError(
                "xmanager is not installed here: it belongs into an environment of its own (docs/launch.md)"
            )
        preflight("train", config, paths)
        with in_charge(paths):
            take_up(start, paths)
        file = paths.directory / "xm_plan.json"
        write_whole(file, text)
        also = (*config.serving.environment, *variables_to_hand_on(config))
        command = [program, "launch", str(_SCRIPT), "--", "--plan", str(file)]
        return subprocess.run(command, env=process_environment(os.environ, also), check=False).returncode

    def status(self, paths: RunPaths) -> str:
        return self._run.status(paths)

    def stop(self, paths: RunPaths) -> str:
        return self._run.stop(paths)


def plan(config: Config, paths: RunPaths) -> dict[str, Any]:
    """What the script launches: the whole run on this machine, or a job for each role on a cluster."""
    place, roles = Pods(), config.launch.roles()
    jobs = []
    for process in planned(config, paths, place=place):
        settings = roles.get(process.role)  # type: ignore[call-overload]
        if settings is None or process.name not in ("serve", "serve-0", "learner", "rollout", "rollout-0"):
            continue
        jobs.append(
            {
                "name": process.role,
                "command": process.commands[0],
                "hosts": hosts_of(config, process.role),  # type: ignore[arg-type]
                **settings.model_dump(
                    mode="json", include={"image", "cpus", "memory_gib", "devices", "device_type", "topology"}
                ),
            }
        )
    local = [*python_module("tools.train"), "--resume", str(paths.directory)]
    return {"run": config.run.name, "local": local, "jobs": jobs}
