"""One job: real processes under the project's supervisor, one seed's faults after the other, and a check at the end."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from configs.schema import Config
from learner_jax.runtime import Waits
from serving_bridge.processes import Supervisor, python_module
from serving_bridge.telemetry import MetricsLog, MetricsTail, Record, read_metrics
from tools.assembly import build_queue, run_paths
from tools.testing.chaos import history
from tools.testing.chaos.checker import check, check_accuracy
from tools.testing.chaos.disks import small_disks
from tools.testing.chaos.engines import ENGINES, EngineName
from tools.testing.chaos.inject import Site, SkippedError, heal, inject
from tools.testing.chaos.plan import Fault, draw
from tools.testing.chaos.prepare import job_config, job_environment
from tools.testing.chaos.processes import processes, wake_all
from tools.testing.chaos.skill import correct_answers

_TICK_S = 0.05
#: A fault may end any process again and again; the pause between two starts is bounded by the window.
_RESTARTS, _WINDOW_S = 10_000, 3.0
_GRACE_S = {"serve": 15.0, "learner": 20.0, "rollout": 10.0}
#: steps of the learner that show that all of a job works again: more than may wait in the queue
_STEPS_TO_RECOVER = 4
#: a seed that would begin with fewer steps to go than this is not begun
_LEAST_STEPS = 15
_STEPS_BETWEEN = 2
_WORDS = 160
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class JobSpec:
    """What a job runs.

    Attributes:
      folder: of its own.
      work: shared by all jobs.
      seeds: faults are drawn from these, in this order; empty for a run without faults.
      clean_correct: right answers of a run without faults, to compare with; None compares nothing.
      patch: Python code that the learner runs first.
      faults: of every seed, in place of those that are drawn.
    """

    folder: Path
    work: Path
    model: Path
    seeds: tuple[int, ...]
    engine: EngineName = "fake"
    overrides: tuple[str, ...] = ()
    measures_skill: bool = True
    clean_correct: int | None = None
    patch: Path | None = None
    faults: tuple[Fault, ...] | None = None


@dataclass
class SeedRecord:
    """What became of one seed.

    Attributes:
      recovered_s: from the end of its faults until the job worked again; None if it did not, or was not begun.
      skipped: faults that could not be brought about, with the reason.
      verdict: "recovered", "late" (the job was near its end before its turn), or what went wrong.
    """

    seed: int
    faults: list[str]
    recovered_s: float | None = None
    skipped: list[str] = field(default_factory=list)
    verdict: str = "late"


@dataclass
class JobRecord:
    """What became of a job.

    Attributes:
      problems: everything that is wrong; empty if nothing is.
      correct: right answers to the held-out problems at the end; None if not measured.
      restarts: by process, whatever ended it.
      last_words: how often processes said what before they ended, by log; a `Traceback` among them was not meant for
        people.
    """

    folder: str
    seeds: list[SeedRecord]
    problems: list[str] = field(default_factory=list)
    correct: int | None = None
    num_problems: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    last_words: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def end_with_parent() -> None:
    """In the process of a job: when whoever started it dies, it ends in order, with its processes and its mounts."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run_job(spec: JobSpec) -> JobRecord:
    """Runs a job to its end; its folder is kept where something is wrong."""
    started = time.monotonic()
    shutil.rmtree(spec.folder, ignore_errors=True)
    spec.folder.mkdir(parents=True)
    config = job_config(spec.model, spec.folder, spec.engine, spec.overrides)
    record = JobRecord(
        str(spec.folder), [SeedRecord(seed, [f.name for f in _faults(spec, seed)]) for seed in spec.seeds]
    )
    with (
        _environment(job_environment(spec.work, spec.folder, spec.engine, spec.patch)),
        small_disks(spec.folder / "run") as disks,
    ):
        try:
            asyncio.run(_Job(spec, config, disks, record).run())
        except Exception as error:  # noqa: BLE001 - whatever ends a job is its result
            record.problems.append(f"{type(error).__name__}: {error}")
        if left := processes(spec.folder):
            record.problems.append(f"processes outlived the job: {left}")
        _judge(spec, config, record)
        if record.problems:
            for name, disk in disks.items():
                shutil.copytree(disk, spec.folder / "kept" / name, dirs_exist_ok=True)
    record.seconds = time.monotonic() - started
    if not record.problems:
        shutil.rmtree(spec.folder)
    return record


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """The supervisor takes what it gives its processes from this process's environment."""
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _judge(spec: JobSpec, config: Config, record: JobRecord) -> None:
    """Reads what the job left and adds what is wrong with it."""
    paths = run_paths(config)
    records = read_metrics(paths.metrics)
    for entry in records:
        if entry["event"] == "restart":
            record.restarts[entry["name"]] = record.restarts.get(entry["name"], 0) + 1
    record.last_words = dict(last_words(paths.logs))
    try:
        with closing(build_queue(config, paths)) as queue:
            ledger = history.read_ledger(queue)
        record.problems += check(
            history.History(
                run=config.run.name,
                total_steps=config.learner.steps,
                max_staleness=config.rollout.max_staleness,
                groups_per_step=config.learner.groups_per_step,
                entries=history.entries(records),
                ledger=ledger,
                given_up=history.given_up(records),
                published=[r["version"] for r in records if r["event"] == "published"],
            )
        )
        if spec.measures_skill and not record.problems:
            record.correct, record.num_problems = correct_answers(config), config.evaluation.num_problems
            if spec.clean_correct is not None:
                record.problems += check_accuracy(record.correct, spec.clean_correct, record.num_problems)
    except Exception as error:  # noqa: BLE001 - what can't be read is wrong, too
        record.problems.append(f"what the job left can't be read: {type(error).__name__}: {error}")


def last_words(logs: Path) -> Counter[str]:
    """Errors in the logs, without numbers and paths, and how often each came."""
    found: Counter[str] = Counter()
    for path in sorted(logs.glob("*.log")):
        in_traceback = False
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("Traceback"):
                in_traceback = True
            elif line.startswith("error: ") or (in_traceback and line and not line[0].isspace()):
                kind = "Traceback: " if in_traceback else ""
                found[f"{path.stem}: {kind}{re.sub(r'/[^ ,;:]+|[0-9]+', '*', line)[:_WORDS]}"] += 1
                in_traceback = False
    return found


def _faults(spec: JobSpec, seed: int) -> tuple[Fault, ...]:
    return draw(seed, spec.engine) if spec.faults is None else spec.faults


class _Job:
    """A job while it runs."""

    def __init__(self, spec: JobSpec, config: Config, disks: Mapping[str, Path], record: JobRecord) -> None:
        self._spec, self._config, self._record = spec, config, record
        self._paths = run_paths(config)
        # The harness's events are no part of what a full disk may stop.
        self._log = MetricsLog(self._paths.metrics, "chaos").write
        self._tail = MetricsTail(self._paths.metrics)
        self._waits = Waits()
        self._engine = ENGINES[spec.engine]
        self._site = Site(spec.folder, config, self._engine, disks, self._log, self._waits, random.Random(0))
        self._step = self._num_steps = 0

    async def run(self) -> None:
        with Supervisor(self._paths.logs, self._log, waits=self._waits) as supervisor:
            for name, module in (("serve", "serve"), ("learner", "learner"), ("rollout", "rollout")):
                command = [*python_module(f"tools.{module}"), "--config", str(self._paths.config)]
                supervisor.start(name, command, restarts=_RESTARTS, window_s=_WINDOW_S, grace_s=_GRACE_S[name])
            watch = asyncio.create_task(self._watch(supervisor))
            try:
                await self._while_watched(watch, self._seeds(supervisor))
            finally:
                watch.cancel()
                heal(self._site)
                wake_all(self._spec.folder)
                await asyncio.gather(watch, return_exceptions=True)

    async def _while_watched(self, watch: asyncio.Task[None], work: object) -> None:
        """Runs the seeds for as long as the supervisor can keep everything running."""
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            watch.result()
        task.result()

    async def _watch(self, supervisor: Supervisor) -> None:
        while True:
            supervisor.check()
            self._look(self._tail.read())
            await asyncio.sleep(_TICK_S)

    def _look(self, records: Sequence[Record]) -> None:
        for record in records:
            if record["event"] == "step":
                self._step = record["step"]
                self._num_steps += 1

    async def _seeds(self, supervisor: Supervisor) -> None:
        await self._until("the first steps", self._engine.start_s, lambda: self._num_steps >= _STEPS_TO_RECOVER)
        for record in self._record.seeds:
            if self._config.learner.steps - self._step < _LEAST_STEPS:
                break
            await self._one_seed(record, supervisor)
            await self._steps(_STEPS_BETWEEN, supervisor)
        await self._end(supervisor)

    async def _steps(self, count: int, supervisor: Supervisor) -> None:
        """Waits for more steps of the learner, or its end."""
        target = self._num_steps + count

        def made() -> bool:
            return self._num_steps >= target or supervisor.has_finished("learner")

        await self._until(f"{count} more steps", self._engine.recover_s, made)

    async def _one_seed(self, record: SeedRecord, supervisor: Supervisor) -> None:
        self._site.draws = random.Random(f"chaos job {record.seed}")
        self._log("seed", seed=record.seed, faults=record.faults)
        record.verdict = "broke off"
        faults = _faults(self._spec, record.seed)
        outcomes = await asyncio.gather(*(inject(self._site, fault) for fault in faults), return_exceptions=True)
        for fault, outcome in zip(faults, outcomes, strict=True):
            if isinstance(outcome, SkippedError):
                record.skipped.append(f"{fault.name}: {outcome}")
            elif isinstance(outcome, BaseException):
                record.verdict = f"{fault.name}: {type(outcome).__name__}: {outcome}"
                raise outcome
        healed_s = time.monotonic()
        self._log("healed", seed=record.seed)
        try:
            await self._steps(_STEPS_TO_RECOVER, supervisor)
        except Exception as error:
            record.verdict = str(error)
            raise
        record.recovered_s, record.verdict = time.monotonic() - healed_s, "recovered"

    async def _end(self, supervisor: Supervisor) -> None:
        """All ends by itself: the learner after its steps, then the worker; the fleet is asked to."""
        left_s = self._engine.recover_s + (self._config.learner.steps - self._step) * 2.0
        await self._until("the run's end", left_s, lambda: supervisor.has_finished("learner"))
        await self._until("the worker's end", self._engine.recover_s, lambda: supervisor.has_finished("rollout"))

    async def _until(self, what: str, limit_s: float, holds: Callable[[], bool]) -> None:
        with self._waits.waiting(what, on="the job", limit_s=limit_s) as wait:
            while not holds():
                wait.hint(
                    f"step {self._step}; running: {[(p.role, p.pid) for p in processes(self._spec.folder)]}"
                    if wait.remaining_s < 1
                    else ""
                )
                await wait.pause(_TICK_S)
