"""Reruns a study. Interrupted, it goes on where it stopped; `--seeds 1 --steps 20` is a quick look.

python -m tools.study staleness [--out runs/studies/staleness] [--seeds 3] [--workers 2] [--report-to docs/studies]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tools.assembly import clear_errors
from tools.study import results, worker
from tools.study.grid import STALENESS, Cell, StudySettings, cells

_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["staleness"])
    parser.add_argument("--out", type=Path, default=Path("runs/studies/staleness"), help="starts and finished cells")
    parser.add_argument("--report-to", type=Path, default=Path("docs/studies"), help="folder of the page and the plot")
    parser.add_argument("--seeds", type=_positive, default=3)
    parser.add_argument("--staleness", type=int, nargs="+", default=list(STALENESS), metavar="VERSIONS")
    parser.add_argument("--steps", type=_positive, default=StudySettings.steps)
    parser.add_argument("--workers", type=_positive, default=max(1, min(8, len(os.sched_getaffinity(0)))))
    parser.add_argument("--only-report", action="store_true", help="write the page from the cells that are finished")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds the pool, so that no worker is left behind
    with clear_errors():
        settings = replace(StudySettings(), steps=arguments.steps)
        wanted = cells(arguments.seeds, arguments.staleness)
        if not arguments.only_report:
            _run_all(wanted, settings, arguments.out, arguments.workers)
        page = results.write_report(arguments.out, wanted, settings, arguments.report_to)
        print(f"wrote {page}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def _run_all(wanted: list[Cell], settings: StudySettings, out: Path, workers: int) -> None:
    """Runs the cells that have no record yet, each worker on a core of its own."""
    done = results.finished(out, settings)
    todo = [cell for cell in wanted if cell not in done]
    seeds = sorted({cell.seed for cell in todo})
    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    with (
        Progress(*columns, TimeRemainingColumn()) as progress,
        context.Pool(min(workers, max(len(todo), 1)), worker.start, (cores, out, _CONFIG, settings)) as pool,
    ):
        # Starts first, one job for each seed: two workers must not make the same one.
        bar = progress.add_task("supervised starts", total=len(seeds))
        for _ in pool.imap_unordered(worker.make_starts, seeds):
            progress.advance(bar)
        bar = progress.add_task("cells", total=len(wanted), completed=len(wanted) - len(todo))
        for cell in pool.imap_unordered(worker.run_cell, todo):
            progress.update(bar, advance=1, description=f"{cell.algorithm}, {cell.task}, lag {cell.staleness}")


if __name__ == "__main__":
    main()
