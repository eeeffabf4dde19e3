"""Runs a whole training job on one machine: fleet, rollout worker and learner as processes of their own.

    python -m tools.train --config configs/demo.toml [--set rollout.max_staleness=0] [--profile N] [--dry-run]

    python -m tools.train --resume runs/demo [--set learner.steps=400]

All that can be known before is checked first, within seconds; --dry-run prints that and starts nothing.

An unfinished run directory is taken up where it stopped; a finished one is left alone and a new one is begun, unless
--resume names it. Settings may change then, but those that a run keeps for its life; the change is recorded. A process
that ends with an error is started again, a bounded number of times, and the others go on; with learner.hosts.count
above 1 the learner is that many processes, which are started again together.

SIGTERM or Ctrl-C stops all of them in order, with the learner's state saved, and a second one at once; either way the
same command goes on from there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from configs.load import load_config
from learner_jax.runtime import Waits, printable
from serving_bridge.processes import sole, wait_until_free
from tools.assembly import (
    RunPaths,
    Start,
    StopRequest,
    clear_errors,
    config_arguments,
    locks,
    looked,
    make_private_directory,
    preflight,
    profile_argument,
    run_directory,
    run_paths,
    show_dry_run,
)
from tools.command_line import command_parser
from tools.launch import Job
from tools.reporting import LiveView, page

_INTERRUPTED = 130
#: what is left of an earlier start is ended by its guard sooner than this
_ENDING_S = 60.0


def train(start: Start, *, profile_steps: int = 0, dry: bool = False) -> int:
    """Runs the job, or says what it would be; returns the process's exit status.

    Raises:
      InUseError: another process works on the run.
    """
    config, paths = start.config, run_paths(start.config)
    if dry:
        run_directory.tell(start.changes)
        return show_dry_run(config, paths, profile_steps=profile_steps)
    is_new = not paths.directory.exists()
    if is_new:
        preflight("train", config, paths)  # what can't start leaves nothing behind
    with in_charge(paths):
        if not is_new:
            preflight("train", config, paths)
        make_private_directory(paths)
        run_directory.require_original(config, paths)
        run_directory.tell(start.changes)
        if start.reopens:
            run_directory.keep_results(paths)
        run_directory.record(start, paths)
        looked(paths)
        stop = StopRequest().install()
        with LiveView(config, paths.directory) as view:
            complete = Job(config, paths, view, stop, profile_steps=profile_steps).run()
    if not complete:
        print(f"stopped; the same command goes on from the last checkpoint in {printable(paths.directory)}")
        return _INTERRUPTED
    summary = page.write_summary(paths.directory)
    page.write_report(paths.directory)
    print(printable(page.headline(summary, paths.directory), keep_lines=True))
    return 0


@contextlib.contextmanager
def in_charge(paths: RunPaths) -> Iterator[None]:
    """Keeps others from starting the same run, and waits until what an earlier start left has ended."""
    if not paths.directory.is_dir():
        make_private_directory(paths)
    place = locks(paths) / "train"
    with sole(place, f"run directory {paths.directory}", hint="stop it first, or give another --set run.directory=DIR"):
        wait_until_free(locks(paths) / "processes", Waits(), limit_s=_ENDING_S)
        yield


def main() -> None:
    parser = command_parser("train", __doc__)
    config_arguments(parser, required=False)
    profile_argument(parser)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="carry on this run directory, also a finished one")
    parser.add_argument("--dry-run", action="store_true", help="print settings, checks and all that would be started")
    arguments = parser.parse_args()
    if (arguments.config is None) == (arguments.resume is None):
        parser.error("expected either --config FILE or --resume RUN")
    with clear_errors():
        if arguments.resume is not None:
            start = run_directory.resume(arguments.resume, arguments.overrides)
        else:
            start = run_directory.choose(load_config(arguments.config, arguments.overrides))
        try:
            status = train(start, profile_steps=arguments.profile, dry=arguments.dry_run)
        except KeyboardInterrupt:
            print("ended at once; the same command goes on from the last checkpoint")
            status = _INTERRUPTED
    raise SystemExit(status)


if __name__ == "__main__":
    main()
