"""How much of the time sampling and training overlap: a run against the slower of its halves alone.

python -m tools.bench overlap [--config configs/demo.toml] [--steps 40] [--skip 8] [--rounds 3] [--staleness 2]

Real processes: learner on one core, everything else (vLLM's processes, fleet controller, rollout worker) on another.
The supervised start is made once. Each round then has three jobs:

alone         the worker samples the groups of all steps with the learner stopped (SIGSTOP); then everything else ends
              and the learner trains on them, publishing every version
asynchronous  both at once, within the staleness bound
synchronous   both at once with staleness 0: each waits for the other

Seconds are per step, after the first `--skip` steps, which compile and fill the pipeline. The aim is
max(sampling alone, training alone) / asynchronous >= 0.90.

Not covered: GPUs, where both sides share neither caches nor memory bandwidth, and tasks with slow rewards.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from configs.load import load_config, save_config
from configs.schema import Config, ModelSettings
from learner_jax.runtime import Waits
from serving_bridge.processes import Supervisor, python_module
from serving_bridge.telemetry import Record, read_metrics
from tools.assembly import RunPaths, base_model_dir, build_queue, build_registry, run_paths
from tools.bench import BenchmarkError
from tools.bench.timing import (
    Spread,
    bench_parser,
    console,
    positive,
    progress,
    ratio,
    spread,
    this_hardware,
    write_json,
)
from tools.reporting import idle_shares

AIM = 0.90
_POLL_S = 0.05
_LIMIT_S = 900.0
#: the learner's core, and that of all others
_LEARNER_CORE, _OTHER_CORE = 0, 1


@dataclass(frozen=True)
class Round:
    """Seconds per step of each job; and who waited in the asynchronous one, as shares of time."""

    sampling_s: float
    training_s: float
    asynchronous_s: float
    synchronous_s: float
    learner_idle: float
    rollout_idle: float

    @property
    def overlap(self) -> float:
        """1: as fast as the slower half alone."""
        return max(self.sampling_s, self.training_s) / self.asynchronous_s


class Job:
    """The processes of one run in a folder of its own, pinned to the two cores."""

    def __init__(self, config: Config, supervisor: Supervisor, waits: Waits):
        self.config, self.paths = config, run_paths(config)
        self._supervisor, self._waits = supervisor, waits
        self._queue = build_queue(config, self.paths)

    def start(self, name: str, module: str, core: int) -> None:
        command = [*python_module(module), "--config", str(self.paths.config)]
        with _pinned(core):
            self._supervisor.start(name, command, grace_s=30)

    def until(self, what: str, reached: Callable[[], bool]) -> None:
        with self._waits.waiting(what, on=str(self.paths.directory), limit_s=_LIMIT_S) as wait:
            while not reached():
                self._supervisor.check()
                wait.sleep(_POLL_S)

    def num_sampled(self) -> int:
        progress = self._queue.admin.progress()
        return progress.num_ready + progress.num_leased + progress.num_trained + progress.num_acknowledged

    def metrics(self, event: str) -> list[Record]:
        return [record for record in read_metrics(self.paths.metrics) if record["event"] == event]

    def close(self) -> None:
        self._queue.close()


def main(argv: Sequence[str]) -> None:
    """Measures, prints the table and the verdict, and writes them as JSON where asked to."""
    parser = bench_parser("overlap", __doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"), help="default configs/demo.toml")
    parser.add_argument("--steps", type=positive, default=40, help="optimizer steps of each job (default 40)")
    parser.add_argument("--skip", type=positive, default=8, help="first steps left out (default 8)")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--staleness", type=positive, default=2, help="of the asynchronous job (default 2)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    given = parser.parse_args(argv)
    if given.skip >= given.steps:
        parser.error(f"--skip {given.skip}: expected fewer than --steps {given.steps}")
    if len(os.sched_getaffinity(0)) < 2:
        raise BenchmarkError("the learner and the rest need a core each: run it where two are free")
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    rounds = measure(given.config, given.overrides, given.steps, given.skip, given.rounds, given.staleness)
    out.print(table(rounds))
    out.print(verdict(rounds), highlight=False)
    if given.json is not None:
        settings = {name: getattr(given, name) for name in ("steps", "skip", "rounds", "staleness", "overrides")}
        write_json(given.json, "overlap", hardware, settings, [asdict(one) for one in rounds])


def measure(
    config_path: Path, overrides: Sequence[str], steps: int, skip: int, rounds: int, staleness: int
) -> list[Round]:
    with tempfile.TemporaryDirectory() as folder, progress() as bar:
        task = bar.add_task("supervised start", total=3 * rounds + 1)
        base = _base(load_config(config_path, list(overrides)), Path(folder), steps)
        bar.update(task, advance=1)
        found = []
        for number in range(rounds):
            times: dict[str, float] = {}
            jobs = [
                ("alone", partial(_alone, _for_job(base, f"alone-{number}", staleness=steps), skip)),
                ("asynchronous", partial(_asynchronous, _for_job(base, f"async-{number}", staleness=staleness), skip)),
                ("synchronous", partial(_synchronous, _for_job(base, f"sync-{number}", staleness=0), skip)),
            ]
            first = number % len(jobs)
            for name, job in jobs[first:] + jobs[:first]:
                bar.update(task, description=f"round {number + 1}: {name}")
                times |= job()
                bar.update(task, advance=1)
            found.append(Round(**times))
    return found


def _base(config: Config, folder: Path, steps: int) -> Config:
    """The configuration of every job, with the model that the supervised start made."""
    run = config.run.model_copy(update={"directory": str(folder / "base")})
    config = config.model_copy(update={"run": run})
    paths = _saved(config)
    model = Path(config.model.path).expanduser().absolute() if config.model.path else base_model_dir(config, paths)
    if config.warm_start is not None:
        with Supervisor(paths.logs, lambda event, **fields: None) as supervisor:
            job = Job(config, supervisor, Waits())
            command = [*python_module("tools.learner"), "--config", str(paths.config), "--warm-start"]
            supervisor.start("warm_start", command)
            job.until("the supervised start", lambda: supervisor.has_finished("warm_start"))
            job.close()
        model = paths.start_model
    return config.model_copy(
        update={
            "model": ModelSettings(path=str(model)),
            "warm_start": None,
            "learner": config.learner.model_copy(update={"steps": steps, "cpu_cores": 1}),
            "evaluation": config.evaluation.model_copy(update={"every": 0}),
        }
    )


def _for_job(base: Config, name: str, *, staleness: int) -> Config:
    directory = Path(base.run.directory).parent / name
    return base.model_copy(
        update={
            "run": base.run.model_copy(update={"directory": str(directory)}),
            "rollout": base.rollout.model_copy(update={"max_staleness": staleness}),
        }
    )


def _saved(config: Config) -> RunPaths:
    paths = run_paths(config)
    paths.logs.mkdir(parents=True)
    save_config(config, paths.config)
    return paths


@contextmanager
def _job(config: Config) -> Iterator[tuple[Job, Supervisor]]:
    paths = _saved(config)
    with Supervisor(paths.logs, lambda event, **fields: None) as supervisor:
        job = Job(config, supervisor, Waits())
        try:
            yield job, supervisor
        finally:
            job.close()


def _alone(config: Config, skip: int) -> dict[str, float]:
    """Seconds per step of sampling alone, then of training alone."""
    steps, groups = config.learner.steps, config.learner.groups_per_step
    with _job(config) as (job, supervisor):
        job.start("learner", "tools.learner", _LEARNER_CORE)
        job.until("the first version", lambda: bool(job.metrics("published")))
        (learner,) = _pids("tools.learner", job.paths.config)
        os.kill(learner, signal.SIGSTOP)
        job.start("serve", "tools.serve", _OTHER_CORE)
        registry = build_registry(job.paths)
        job.until("a replica", lambda: bool(registry.ready()))
        job.start("rollout", "tools.rollout", _OTHER_CORE)
        job.until("the first groups", lambda: job.num_sampled() >= skip * groups)
        started, first = time.monotonic(), job.num_sampled()
        job.until("all groups", lambda: job.num_sampled() >= steps * groups)
        sampling_s = (time.monotonic() - started) / (job.num_sampled() - first) * groups
        for name in ("rollout", "serve"):
            supervisor.stop(name)
        os.kill(learner, signal.SIGCONT)
        job.until("training", lambda: supervisor.has_finished("learner"))
        return {"sampling_s": sampling_s, "training_s": _step_s(job.metrics("step"), skip)}


def _together(config: Config) -> Job:
    """A job with both sides at work, when it has ended."""
    with _job(config) as (job, supervisor):
        job.start("serve", "tools.serve", _OTHER_CORE)
        job.start("learner", "tools.learner", _LEARNER_CORE)
        registry = build_registry(job.paths)
        job.until("a replica", lambda: bool(registry.ready()))
        job.start("rollout", "tools.rollout", _OTHER_CORE)
        job.until("training", lambda: supervisor.has_finished("learner"))
        return job


def _asynchronous(config: Config, skip: int) -> dict[str, float]:
    job = _together(config)
    steps = job.metrics("step")
    measured = steps[skip:]
    intervals = [r for r in job.metrics("interval") if measured[0]["t"] <= r["t"] <= measured[-1]["t"]]
    shares = idle_shares(measured, intervals)
    return {
        "asynchronous_s": _step_s(steps, skip),
        "learner_idle": shares.learner or 0.0,
        "rollout_idle": shares.rollout or 0.0,
    }


def _synchronous(config: Config, skip: int) -> dict[str, float]:
    return {"synchronous_s": _step_s(_together(config).metrics("step"), skip)}


def _step_s(steps: Sequence[Record], skip: int) -> float:
    return float(steps[-1]["t"] - steps[skip - 1]["t"]) / (len(steps) - skip)


@contextmanager
def _pinned(core: int) -> Iterator[None]:
    """Processes started inside run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[core]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _pids(module: str, config: Path) -> list[int]:
    """Python processes that run a module with a configuration; their guards, which name it too, are left out."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[1:4] == python_module(module)[1:] and str(config) in words:
            found.append(int(path.name))
    return found


def table(rounds: Sequence[Round]) -> Table:
    names = ("sampling alone", "training alone", "asynchronous", "synchronous")
    found = Table("milliseconds per step", *names)
    columns = [[getattr(one, f"{field}_s") for one in rounds] for field in _FIELDS]
    found.add_row("", *(spread(column).show(scale=1e3) for column in columns))
    return found


_FIELDS = ("sampling", "training", "asynchronous", "synchronous")


def verdict(rounds: Sequence[Round]) -> str:
    overlap = spread([one.overlap for one in rounds])
    speedup = ratio([one.synchronous_s for one in rounds], [one.asynchronous_s for one in rounds])
    idle: list[Spread] = [spread([one.learner_idle for one in rounds]), spread([one.rollout_idle for one in rounds])]
    met = "met" if overlap.median >= AIM else "NOT met"
    return (
        f"max(sampling, training) alone / asynchronous: {overlap.show()} (aim {AIM}): {met}\n"
        f"synchronous / asynchronous: {speedup.show()}\n"
        f"idle in the asynchronous job: learner {idle[0].show()}, rollout {idle[1].show()}"
    )
