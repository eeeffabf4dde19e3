"""Reruns a study. Interrupted, it goes on where it stopped; `--seeds 1 --steps 20` is a quick look.

python -m tools.study staleness [--out runs/studies/staleness] [--seeds 3] [--workers 2] [--report-to docs/studies]
python -m tools.study learning --model DIR [--seeds 4] [--whole-runs RECORD.json ...] [--report-to docs/studies]
python -m tools.study credit [--seeds 8] [--report-to docs/studies]
python -m tools.study retrieval [--seeds 8] [--report-to docs/studies]
python -m tools.study renderers --model DIR --conversations FILE --python PYTHON [--report-to docs/studies]
python -m tools.study canary [--good 1000] [--bad 100] [--workers 2] [--report-to docs/studies]
python -m tools.study gate --model DIR [--gates 2000] [--workers 2] [--report-to docs/studies]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tools.assembly import clear_errors
from tools.command_line import CommandParser
from tools.study import credit_results, learning_results, results, retrieval_results, worker
from tools.study.grid import STALENESS, Cell, StudySettings, cells
from tools.study.learning_grid import VARIANTS, LearningSettings, learning_cells
from tools.study.records import StudyError, unfinished
from tools.study.retrieval import RetrievalSettings
from tools.study.turn_credit import CreditSettings

T = TypeVar("T")
_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.toml"


def main() -> None:
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds the pool, so that no worker is left behind
    with clear_errors():
        print(f"wrote {arguments.run(arguments)}")


def _parse() -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = parser.add_subparsers(required=True, metavar="study")
    add = partial(_study, studies)
    _of_runs(
        add("staleness", "how much staleness each estimator bears", _staleness), 3, StudySettings.steps
    ).add_argument("--staleness", type=int, nargs="+", default=list(STALENESS), metavar="VERSIONS")
    _learning_options(add("learning", "why Weir's job learns more per step than a synchronous trainer", _learning))
    _of_seeds(add("credit", "how many dialogs credit by turn saves", _credit), CreditSettings.steps)
    _of_seeds(add("retrieval", "what teaches a policy to search and to abstain", _retrieval), RetrievalSettings.steps)
    canary = _in_processes(add("canary", "how often the canary decides wrongly, on simulated traffic", _canary))
    canary.add_argument("--good", type=_positive, default=1000, help="good candidates (default: 1000)")
    canary.add_argument("--bad", type=_positive, default=100, help="bad candidates of each kind (default: 100)")
    gate = _in_processes(add("gate", "how often the gate stops versions that are worse by known amounts", _gate))
    gate.add_argument("--model", type=Path, required=True, metavar="DIR", help="that learned to add: RUN/final_model")
    gate.add_argument("--gates", type=_positive, default=2000, help="of each candidate (default: 2000)")
    _renderers_options(
        add("renderers", "which code renders prompts right: Weir's, or the package renderers", _renderers, keeps=False)
    )
    return parser.parse_args()


def _study(
    studies: Any, name: str, what: str, run: Callable[[argparse.Namespace], Path], *, keeps: bool = True
) -> argparse.ArgumentParser:
    """Adds a study's parser; `keeps`: it goes on with what it has finished."""
    study: argparse.ArgumentParser = studies.add_parser(name, help=what)
    study.set_defaults(run=run)
    study.add_argument("--report-to", type=Path, default=Path("docs/studies"), help="folder of the page and its plots")
    if keeps:
        out = Path("runs/studies") / name
        study.add_argument("--out", type=Path, default=out, help=f"what is finished (default: {out})")
    return study


def _in_processes(study: argparse.ArgumentParser) -> argparse.ArgumentParser:
    study.add_argument("--workers", type=_positive, default=max(1, min(8, len(os.sched_getaffinity(0)))))
    return study


def _of_seeds(study: argparse.ArgumentParser, steps: int, seeds: int = 8) -> argparse.ArgumentParser:
    study.add_argument("--seeds", type=_positive, default=seeds)
    study.add_argument("--steps", type=_positive, default=steps)
    return study


def _of_runs(study: argparse.ArgumentParser, seeds: int, steps: int) -> argparse.ArgumentParser:
    study.add_argument("--only-report", action="store_true", help="write the page from the cells that are finished")
    return _of_seeds(_in_processes(study), steps, seeds)


def _learning_options(learning: argparse.ArgumentParser) -> None:
    _of_runs(learning, 4, LearningSettings.steps)
    learning.add_argument("--model", type=Path, required=True, metavar="DIR", help="start weights of all runs")
    learning.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), metavar="NAME")
    learning.add_argument(
        "--whole-runs",
        type=Path,
        nargs="+",
        default=[],
        metavar="RECORD",
        help="of `tools.bench end_to_end --rounds 1 --evaluate-every 20 --json RECORD`, a seed each",
    )


def _renderers_options(study: argparse.ArgumentParser) -> None:
    study.add_argument("--model", type=Path, required=True, metavar="DIR", help="tokenizer and template, of ChatML")
    study.add_argument("--conversations", type=Path, required=True, metavar="FILE", help="JSON lines, or .gz of them")
    study.add_argument("--python", type=Path, required=True, help="of an environment that has renderers")
    study.add_argument("--dialogs", type=_positive, default=600, help="at most (default: 600)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def _staleness(arguments: argparse.Namespace) -> Path:
    settings = replace(StudySettings(), steps=arguments.steps)
    wanted = cells(arguments.seeds, arguments.staleness)
    if not arguments.only_report:
        todo = unfinished(arguments.out, wanted, settings)
        seeds = sorted({cell.seed for cell in todo})
        with _workers(arguments, settings, len(todo)) as (progress, pool):
            # Starts first, one job for each seed: two workers must not make the same one.
            bar = progress.add_task("supervised starts", total=len(seeds))
            for _ in pool.imap_unordered(worker.make_starts, seeds):
                progress.advance(bar)
            _run(progress, pool, worker.run_cell, todo, _named)
    return results.write_report(arguments.out, wanted, settings, arguments.report_to)


def _credit(arguments: argparse.Namespace) -> Path:
    settings = replace(CreditSettings(), steps=arguments.steps)
    found = credit_results.run_study(arguments.out, arguments.seeds, settings, lambda name: print(f"{name} ..."))
    return credit_results.write_credit_report(found, settings, arguments.report_to)


def _renderers(arguments: argparse.Namespace) -> Path:
    from tools.study.renderers import run_renderers  # its tokenizer, which other studies do without

    given = (arguments.model, arguments.conversations, arguments.python, arguments.dialogs, arguments.report_to)
    return run_renderers(*given)


def _retrieval(arguments: argparse.Namespace) -> Path:
    settings = replace(RetrievalSettings(), steps=arguments.steps)
    records = retrieval_results.run_study(arguments.out, arguments.seeds, settings, lambda name: print(f"{name} ..."))
    return retrieval_results.write_retrieval_report(records, settings, arguments.report_to)


def _canary(arguments: argparse.Namespace) -> Path:
    from tools.study import canary  # its simulator, which other studies do without

    settings, wanted = canary.CanarySettings(), canary.canary_cells(arguments.good, arguments.bad)
    todo = unfinished(arguments.out, wanted, settings)
    job = partial(canary.run_cell, arguments.out, settings)
    _run_cells(arguments.workers, job, todo, lambda cell: cell.kind)
    return canary.write_canary_report(arguments.out, wanted, settings, arguments.report_to)


def _gate(arguments: argparse.Namespace) -> Path:
    from tools.study import gate, gate_pools  # vLLM's settings, which other studies do without

    if not arguments.model.is_dir():
        raise StudyError(f"--model: expected an existing folder, got {str(arguments.model)!r}")
    study = gate_pools.GateStudy()
    pools = gate_pools.asked_pools(arguments.model, arguments.out, study, serving=None, say=print)
    study = replace(study, drawn_from=gate_pools.drawn_from(pools))
    wanted = gate.gate_cells(gate.versions_of(pools, study), arguments.gates)
    todo, job = unfinished(arguments.out, wanted, study), partial(gate.run_cell, arguments.out, study, pools)
    _run_cells(arguments.workers, job, todo, lambda cell: cell.version)
    return gate.write_gate_report(arguments.out, pools, wanted, study, arguments.report_to)


def _run_cells(workers: int, job: Callable[[T], T], todo: Sequence[T], named: Callable[[T], str]) -> None:
    """Runs cells that have no record yet in processes of their own, with a progress bar."""
    pool = multiprocessing.get_context("spawn").Pool(min(workers, max(len(todo), 1)))
    with _progress() as progress, pool:
        _run(progress, pool, job, todo, named)


def _named(cell: Cell) -> str:
    return f"{cell.algorithm}, {cell.task}, lag {cell.staleness}"


def _learning(arguments: argparse.Namespace) -> Path:
    if not arguments.model.is_dir():
        raise StudyError(f"--model: expected an existing folder, got {str(arguments.model)!r}")
    every = min(LearningSettings.evaluate_every, arguments.steps)
    settings = LearningSettings(model=str(arguments.model.absolute()), steps=arguments.steps, evaluate_every=every)
    wanted = learning_cells(arguments.seeds, arguments.variants)
    whole_runs = learning_results.read_whole_runs(arguments.whole_runs, settings)  # before hours of work
    todo = unfinished(arguments.out, wanted, settings)
    if arguments.only_report:
        wanted = [cell for cell in wanted if cell not in todo]
    else:
        with _workers(arguments, settings, len(todo)) as (progress, pool):
            _run(progress, pool, worker.run_learning_cell, todo, lambda cell: f"{cell.variant}, seed {cell.seed}")
    return learning_results.write_learning_report(arguments.out, wanted, settings, whole_runs, arguments.report_to)


@contextmanager
def _workers(arguments: argparse.Namespace, settings: Any, jobs: int) -> Iterator[tuple[Progress, Pool]]:
    """A progress bar, and processes with a core of their own each."""
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    with (
        _progress() as progress,
        context.Pool(
            min(arguments.workers, max(jobs, 1)), worker.start, (cores, arguments.out, _CONFIG, settings)
        ) as pool,
    ):
        yield progress, pool


def _progress() -> Progress:
    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn())


def _run(progress: Progress, pool: Pool, job: Callable[[T], T], todo: Sequence[T], named: Callable[[T], str]) -> None:
    """Runs the cells that have no record yet."""
    bar = progress.add_task("cells", total=len(todo))
    for cell in pool.imap_unordered(job, todo):
        progress.update(bar, advance=1, description=named(cell))


if __name__ == "__main__":
    main()
