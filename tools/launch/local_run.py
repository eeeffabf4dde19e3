"""A run carried out to its end, or to a stop: its directory taken charge of, its job run, its report written."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

from learner_jax.runtime import Waits, printable
from serving_bridge.processes import sole, wait_until_free
from tools.assembly import (
    Placement,
    RunPaths,
    Start,
    StopRequest,
    locks,
    looked,
    make_private_directory,
    preflight,
    run_directory,
    run_paths,
    show_dry_run,
)
from tools.launch.job import Job
from tools.launch.started import this_process
from tools.reporting import LiveView

INTERRUPTED = 130
#: what is left of an earlier start is ended by its guard sooner than this
_ENDING_S = 60.0


def train(start: Start, *, profile_steps: int = 0, dry: bool = False) -> int:
    """Runs the job on this machine, or says what it would be; returns the process's exit status.

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
        take_up(start, paths)
        this_process(socket.gethostname()).write(paths)
        looked(paths)
        return carry_out(start, paths, StopRequest().install(), profile_steps=profile_steps)


def take_up(start: Start, paths: RunPaths) -> None:
    """Makes the run's directory, or takes it up: tells and records what changes."""
    make_private_directory(paths)
    run_directory.require_original(start.config, paths)
    run_directory.tell(start.changes)
    if start.reopens:
        run_directory.keep_results(paths)
    run_directory.record(start, paths)


def carry_out(
    start: Start,
    paths: RunPaths,
    should_stop: Callable[[], bool],
    *,
    profile_steps: int = 0,
    place: Placement | None = None,
) -> int:
    """Runs the job of a run that this process is in charge of; returns the exit status.

    Args:
      place: where its processes run; on this machine if None.
    """
    with LiveView(start.config, paths.directory) as view:
        complete = Job(start.config, paths, view, should_stop, profile_steps=profile_steps, place=place).run()
    if not complete:
        print(f"stopped; the same command goes on from the last checkpoint in {printable(paths.directory)}")
        return INTERRUPTED
    from tools.reporting import page  # with Matplotlib, which takes a second to import

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
