"""The program of a SLURM job: it starts the run's processes on the job's hosts, looks after them, and ends with them.

python -m tools.launch.on_slurm --config RUN/config.toml

`tools.launch` submits it. Shortly before the job's time is over it gets SIGUSR1: the learner saves, all ends, and the
job is queued again, to go on from there. SIGTERM saves and ends without that.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from configs.load import load_config
from configs.schema import Config
from learner_jax.runtime import Waits
from tools.assembly import RunPaths, Start, StopRequest, clear_errors, make_private_directory, preflight, run_paths
from tools.command_line import CommandParser
from tools.launch.local_run import INTERRUPTED, carry_out, in_charge
from tools.launch.slurm import OVER_SIGNAL, SlurmPlacement
from tools.launch.slurm_commands import node_address, requeue
from tools.launch.started import LaunchError

#: SLURM ends a job that is queued again within seconds
_END_S = 120.0
_TICK_S = 0.5


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="config.toml of the run's directory")
    arguments = parser.parse_args()
    with clear_errors():
        config = load_config(arguments.config)
        status = run(config, run_paths(config))
    raise SystemExit(status)


def run(config: Config, paths: RunPaths) -> int:
    """Carries the run out in this job; returns the exit status."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job:
        raise LaunchError("SLURM_JOB_ID is not set: this program is of a SLURM job; start it by tools.launch")
    if (paths.directory / "summary.json").exists():
        print("the run has finished: there is nothing to do")
        return 0
    over = TimeOver(StopRequest().install())
    make_private_directory(paths)
    with in_charge(paths):
        preflight("learner", config, paths)
        place = SlurmPlacement(config, paths, address=node_address(os.environ.get("SLURMD_NODENAME", "localhost")))
        status = carry_out(Start(config), paths, over.stop, place=place)
    if status == INTERRUPTED and over.is_over:
        return _queued_again(config, job)
    return status


class TimeOver:
    """Notes that the job's time is nearly over, which is a request to stop, too."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop, self.is_over = stop, False
        signal.signal(OVER_SIGNAL, self._note)

    def _note(self, signum: int, frame: object) -> None:
        if not self.is_over:
            self.is_over = True
            self.stop.ask(signum, frame)


def _queued_again(config: Config, job: str) -> int:
    times = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if times >= config.launch.max_requeues:
        print(f"the time is over, and the job was queued again {times} times (launch.max_requeues): resume it yourself")
        return INTERRUPTED
    print("the time is over: the job is queued again, and goes on from the last checkpoint", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # SLURM's, which ends a job that is queued again
    requeue(job)
    with Waits().waiting("the end of this job", on="SLURM", limit_s=_END_S, error=LaunchError) as wait:
        while True:
            wait.sleep(_TICK_S)


if __name__ == "__main__":
    main()
