"""Proves on real processes that a job lives through kill -9, partitions, full disks, damaged files and wrong clocks.

    python -m tools.testing.chaos --seeds 50 [--first 0] [--engine fake|vllm] [--report FILE]
    python -m tools.testing.chaos --seed 17         the job that holds seed 17, once more

A job is a small training run: fleet, rollout worker and learner as processes of their own, restarted when they die.
Each seed draws one to three faults and brings them about in the running job; the next seed's turn is when the job has
recovered. At the end everything that was consumed is counted. What is wrong is printed with seed, commit, command and
the folder that was kept; the exit status is then 1. Seeds draw the same faults each time; processes are scheduled anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tools.command_line import CommandParser
from tools.reporting import terminal
from tools.testing.chaos import report
from tools.testing.chaos.engines import EngineName
from tools.testing.chaos.job import JobRecord, JobSpec, end_with_parent, run_job
from tools.testing.chaos.prepare import CONFIG, prepared_model, remember_skill, remembered_skill

#: steps of a job: per seed what a seed takes on a machine of its own, and some more, so that the last gets its turn
_STEPS_PER_SEED, _STEPS_MORE = 12, 15
#: of the run without faults, at most: more of them teach nothing more
_CLEAN_STEPS = 120


def num_steps(per_job: int) -> int:
    """Of a job that so many seeds have their turn in."""
    return per_job * _STEPS_PER_SEED + _STEPS_MORE


def job_specs(seeds: Sequence[int], *, per_job: int, work: Path, model: Path, engine: EngineName) -> list[JobSpec]:
    """The jobs of seeds: which job a seed is in depends on the seed and on `per_job` alone.

    Every second job keeps its payloads in files beside the database.
    """
    steps = num_steps(per_job)
    numbers = sorted({seed // per_job for seed in seeds})
    members = {number: [seed for seed in seeds if seed // per_job == number] for number in numbers}
    return [
        JobSpec(
            folder=work / f"job-{number}",
            work=work,
            model=model,
            seeds=tuple(members[number]),
            engine=engine,
            overrides=(
                f"learner.steps={steps}",
                *(("store.blob_bytes=1",) if number % 2 else ()),
            ),
        )
        for number in numbers
    ]


def clean_run(spec: JobSpec) -> tuple[int, JobRecord | None]:
    """Right answers after a run without faults, and its record if one had to be made."""
    model = (spec.model / "model.safetensors").read_bytes()
    key = hashlib.sha256(CONFIG.read_bytes() + model + repr(spec.overrides).encode()).hexdigest()
    known = remembered_skill(spec.work, key)
    if known is not None:
        return known, None
    record = run_job(spec)
    if record.correct is not None:
        remember_skill(spec.work, key, record.correct)
    return record.correct or 0, record


def run_jobs(specs: Sequence[JobSpec], *, at_once: int, console: Console) -> list[JobRecord]:
    """Runs jobs in processes of their own, several at once."""
    records = []
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(at_once, mp_context=context, initializer=end_with_parent)
    with Progress(console=console) as progress, executor as pool:
        task = progress.add_task("seeds", total=sum(len(spec.seeds) for spec in specs))
        for done in as_completed([pool.submit(run_job, spec) for spec in specs]):
            record = done.result()
            records.append(record)
            progress.advance(task, len(record.seeds))
            if record.problems:
                progress.console.print(f"wrong in {record.folder}: {'; '.join(record.problems)}", style="red")
    return sorted(records, key=lambda record: record.seeds[0].seed)


def commit() -> str:
    """The commit that is checked out, with a mark if files differ from it."""
    folder = Path(__file__).parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def parse() -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="instead: the job that holds this seed")
    parser.add_argument("--engine", choices=("fake", "vllm"), default="fake", help="what replicas run")
    parser.add_argument("--jobs-seeds", type=int, default=10, help="seeds per job")
    parser.add_argument("--at-once", type=int, default=1, help="jobs that run at the same time")
    parser.add_argument("--report", type=Path, help="write a JSON record here")
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"), help="folder of the jobs and what they share")
    return parser.parse_args()


def main() -> int:
    options, console, started = parse(), terminal.console(), time.monotonic()
    work, per_job, engine = options.work.absolute(), options.jobs_seeds, options.engine
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        first = options.seed // per_job * per_job
        seeds = range(first, first + per_job)
    work.mkdir(parents=True, exist_ok=True)
    console.print("preparing the model that all jobs begin from, and a run without faults; kept for the next time")
    specs = job_specs(seeds, per_job=per_job, work=work, model=prepared_model(work), engine=engine)
    clean_steps = min(_CLEAN_STEPS, num_steps(per_job))
    unharmed = dataclasses.replace(
        specs[0], folder=work / "clean", seeds=(), overrides=(f"learner.steps={clean_steps}",)
    )
    clean, clean_record = clean_run(unharmed)
    if clean_record is not None and clean_record.problems:
        console.print(
            *report.failures([clean_record], commit=commit(), engine=engine, per_job=per_job), sep="\n", style="red"
        )
        return 1
    specs = [dataclasses.replace(spec, clean_correct=clean) for spec in specs]
    jobs = run_jobs(specs, at_once=options.at_once, console=console)
    console.print(report.table(jobs))
    shares = [f"{job.correct / job.num_problems:.0%}" for job in jobs if job.correct is not None]
    console.print(f"right answers to held-out problems: {', '.join(shares)}; without faults {clean}")
    seconds = time.monotonic() - started
    if options.report is not None:
        text = report.as_json(jobs, engine=engine, commit=commit(), clean_correct=clean, seconds=seconds)
        report.write(options.report, text)
    for line in report.failures(jobs, commit=commit(), engine=engine, per_job=per_job):
        console.print(line, style="red")
    return int(any(job.problems for job in jobs))


if __name__ == "__main__":
    sys.exit(main())
