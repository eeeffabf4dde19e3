"""Runs the whole of Weir, simulated, with every kind of fault, one seed after the other.

    python -m tools.testing.simulate --seeds 10000 [--first 0] [--mode safety|liveness] [--report FILE]
    python -m tools.testing.simulate --seed 1234 --mode liveness --trace
    python -m tools.testing.simulate --mutations tests/tools/testing/protocol_mutations.toml [--seeds 300]

Safety: faults all the time, invariants checked all the time. Liveness: faults for a while, then none, and the run must
finish. Without --mode, even seeds are runs of the first kind and odd ones of the second. Exit status 1 if any failed.

With --mutations the code is made wrong, one mistake at a time, and seeds run until one notices it. Exit status 1 if
fewer than 9 in 10 of those that something can notice were noticed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tools.command_line import CommandParser
from tools.reporting import terminal
from tools.testing.simulate.mistakes import Noticed, read_mistakes, try_mistake
from tools.testing.simulate.run import Mode, Outcome, run_job, simulate

_MODES: tuple[Mode, Mode] = ("safety", "liveness")
_SHOWN_FAILURES = 10


def mode_of(seed: int, asked: Mode | None) -> Mode:
    return asked or _MODES[seed % 2]


#: seeds that a process takes at a time
_CHUNK = 8


def run_many(jobs: list[tuple[int, Mode]], num_processes: int) -> Iterator[Outcome]:
    """Outcomes in no particular order."""
    if num_processes == 1:
        yield from map(run_job, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        yield from pool.imap_unordered(run_job, jobs, chunksize=_CHUNK)


def command_of(outcome: Outcome) -> str:
    return f"python -m tools.testing.simulate --seed {outcome.seed} --mode {outcome.mode} --trace"


def commit() -> str:
    """Of the source that runs, "+" where it was changed since."""
    here = Path(__file__).parent
    try:
        name = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return name.stdout.strip() or "unknown"


def report(outcomes: list[Outcome], seconds: float, console: Console) -> dict[str, object]:
    """Prints what happened and returns it as a record."""
    failed = sorted((outcome for outcome in outcomes if outcome.violation), key=lambda outcome: outcome.seed)
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
    table = Table(title=f"{len(outcomes)} seeds at {commit()}")
    for column in ("what", "times"):
        table.add_column(column, justify="right" if column == "times" else "left")
    for what, times in sorted(counts.items()):
        table.add_row(what, str(times))
    table.add_row("steps trained (also those that a crash undid)", str(sum(outcome.trained for outcome in outcomes)))
    table.add_row("runs that finished", str(sum(outcome.finished for outcome in outcomes)))
    table.add_row("runs that failed", str(len(failed)), style="red" if failed else "green")
    console.print(table)
    console.print(f"{seconds:.0f} s, {1000 * seconds / len(outcomes):.0f} ms a seed")
    for outcome in failed[:_SHOWN_FAILURES]:
        console.print(f"[red]seed {outcome.seed}[/] ({outcome.mode}, commit {commit()}): {outcome.violation}")
        console.print(f"  replay: {command_of(outcome)}", soft_wrap=True)
    return {
        "commit": commit(),
        "seeds": len(outcomes),
        "seconds": seconds,
        "finished": sum(outcome.finished for outcome in outcomes),
        "counts": dict(sorted(counts.items())),
        "failed": [{"seed": o.seed, "mode": o.mode, "violation": o.violation} for o in failed],
    }


def show_mistakes(noticed: list[Noticed], console: Console) -> bool:
    """Prints what was noticed after how many seeds, and by what; returns whether that is enough."""
    table = Table("mistake", "seeds", "noticed by")
    for each in noticed:
        table.add_row(each.mistake.name, str(each.num_seeds), each.violation.partition(":")[0] or "-")
    console.print(table)
    counted = [each for each in noticed if not each.mistake.masked_by]
    found = [each for each in counted if each.violation]
    mean = sum(each.num_seeds for each in found) / max(len(found), 1)
    console.print(f"{len(found)} of {len(counted)} noticed, in the mean within {mean:.0f} seeds")
    return len(found) >= 0.9 * len(counted)


def run_mistakes(path: Path, first: int, most: int, num_processes: int, console: Console) -> bool:
    """`try_mistake` of all that a file lists; whether enough were noticed."""
    jobs = [(mistake, first, most) for mistake in read_mistakes(path)]
    noticed = []
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        for each in pool.imap(try_mistake, jobs):
            noticed.append(each)
            console.print(f"{each.mistake.name}: {each.num_seeds}: {each.violation or 'not noticed'}", markup=False)
    return show_mistakes(noticed, console)


def main() -> None:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--mode", choices=_MODES)
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--report", type=Path, help="write a JSON record there")
    parser.add_argument("--mutations", type=Path, help="TOML file of mistakes to be noticed")
    arguments = parser.parse_args()
    terminal.prepare_streams()
    console = terminal.console()
    if arguments.mutations is not None:
        enough = run_mistakes(arguments.mutations, arguments.first, arguments.seeds, arguments.processes, console)
        raise SystemExit(0 if enough else 1)
    if arguments.seed is not None:
        outcome = simulate(arguments.seed, mode_of(arguments.seed, arguments.mode), show=arguments.trace)
        console.print(f"seed {outcome.seed} ({outcome.mode}): {outcome.violation or 'nothing was violated'}")
        console.print(
            f"{'finished' if outcome.finished else 'not finished'} at {outcome.virtual_s:.1f} s, trace "
            f"{outcome.trace_hash}, commit {commit()}"
        )
        raise SystemExit(1 if outcome.violation else 0)
    started = time.monotonic()
    jobs = [(seed, mode_of(seed, arguments.mode)) for seed in range(arguments.first, arguments.first + arguments.seeds)]
    outcomes = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("seeds", total=len(jobs))
        for outcome in run_many(jobs, arguments.processes):
            outcomes.append(outcome)
            progress.advance(task)
            if outcome.violation:
                progress.console.print(f"[red]seed {outcome.seed}[/]: {outcome.violation}")
    record = report(outcomes, time.monotonic() - started, console)
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(record, indent=1) + "\n")
    raise SystemExit(1 if record["failed"] else 0)


if __name__ == "__main__":
    main()
