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

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from configs.load import load_config
from configs.schema import Config
from learner_jax.runtime import Waits, WeirError, printable
from learner_jax.settings import HOSTS_SECRET
from serving_bridge.evaluation import Evaluation, evaluate
from serving_bridge.processes import Supervisor, sole, wait_until_free
from serving_bridge.routing import ReplicaRow
from serving_bridge.telemetry import MetricsTail, read_metrics, reported_waits
from serving_bridge.vllm import ReplicaError, VllmClient
from tools.assembly import wiring
from tools.assembly.dry_run import dry_run
from tools.assembly.metrics import metrics_log
from tools.assembly.preflight import looked, preflight
from tools.assembly.processes import Planned, fresh_coordinator, learner_commands, planned
from tools.assembly.run_directory import Start, choose, keep_results, record, require_original, resume, tell
from tools.assembly.wiring import RunPaths
from tools.command_line import command_parser
from tools.evaluate import evaluate_folder
from tools.report import headline, write_report, write_summary
from tools.view import LiveView

T = TypeVar("T")

_TICK_S = 0.25
#: between two starts of a worker that ended well while the learner goes on
_WORKER_AGAIN_S = 5.0
_EVALUATION_TRIES = 3
_INTERRUPTED = 130
#: what is left of an earlier start is ended by its guard sooner than this
_ENDING_S = 60.0


class TrainError(WeirError, RuntimeError):
    """The job can't go on."""


class Job:
    """One run of the job; everything it starts is stopped when it ends, however it ends."""

    def __init__(
        self,
        config: Config,
        paths: RunPaths,
        view: LiveView,
        should_stop: Callable[[], bool],
        *,
        profile_steps: int = 0,
    ):
        self._config = config
        self._profile_steps = profile_steps
        self._paths = paths
        self._view = view
        self._should_stop = should_stop
        self._metrics = metrics_log(config, paths, "train")
        self._tail = MetricsTail(paths.metrics)
        self._waits = Waits()

    def run(self) -> bool:
        """Returns whether the run is complete (and not stopped in between)."""
        wiring.base_model_dir(self._config, self._paths)  # made here, before the processes that need it start
        with (
            reported_waits(self._waits, self._metrics.write, clock=time.monotonic),
            Supervisor(
                self._paths.logs, self._metrics.write, waits=self._waits, also=self._config.serving.environment
            ) as supervisor,
        ):
            for part in (self._begin, self._train, self._measure_after):
                part(supervisor)
                if self._should_stop():
                    return False
        self._phase("finished")
        return True

    def _begin(self, supervisor: Supervisor) -> None:
        """Starts all but the rollouts, one after the other, unless a stop is asked for meanwhile."""
        self._phase("starting")
        for process in planned(self._config, self._paths, profile_steps=self._profile_steps):
            if self._should_stop() or process.name == "rollout":
                break
            if process.name == "warm_start":
                self._phase("supervised start")
            self._start(supervisor, process)
            if process.name == "warm_start":
                self._watch(supervisor, until=lambda: supervisor.has_finished("warm_start"))
        if not self._should_stop():
            self._measure_before(supervisor)

    def _train(self, supervisor: Supervisor) -> None:
        self._phase("training")
        rollout = self._planned("rollout")
        self._start(supervisor, rollout)
        started = time.monotonic()

        def keep_up() -> None:
            """A worker that met the run as it had finished before ends well, and is needed all the same."""
            nonlocal started
            if supervisor.has_finished("rollout") and time.monotonic() - started >= _WORKER_AGAIN_S:
                started = time.monotonic()
                self._start(supervisor, rollout)

        self._watch(supervisor, until=lambda: supervisor.has_finished("learner"), meanwhile=keep_up)
        if self._should_stop():
            return
        self._phase("evaluating")
        for name in ("rollout", "serve"):
            supervisor.ask_to_stop(name)

    def _planned(self, name: str) -> Planned:
        return next(process for process in planned(self._config, self._paths) if process.name == name)

    def _start(self, supervisor: Supervisor, process: Planned) -> None:
        supervisor.start_group(
            process.name,
            self._learner_commands if process.name == "learner" else lambda: process.commands,
            restarts=process.restarts,
            grace_s=process.grace_s,
            end_s=process.end_s,
        )

    def _learner_commands(self) -> list[list[str]]:
        if self._config.learner.hosts.count > 1:
            # Other users of this machine can reach the hosts' port, and don't know this.
            os.environ.setdefault(HOSTS_SECRET, secrets.token_hex(32))
        coordinator = fresh_coordinator(self._config)
        return learner_commands(self._config, self._paths, profile_steps=self._profile_steps, coordinator=coordinator)

    def _watch(
        self, supervisor: Supervisor, *, until: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Keeps the view fresh and the processes alive until something holds or a stop is asked for."""
        while not until() and not self._should_stop():
            supervisor.check()
            meanwhile()
            self._update_view()
            time.sleep(_TICK_S)
        if not self._should_stop():
            supervisor.check()
        self._update_view()

    def _update_view(self) -> None:
        self._view.update(self._tail.read())

    def _phase(self, name: str) -> None:
        self._metrics.write("phase", name=name)
        self._update_view()

    def _measured(self, which: str) -> bool:
        """Whether skill was measured, after training since the run was last carried on."""
        found = False
        for event in read_metrics(self._paths.metrics):
            if event["event"] == "carried_on" and which == "after":
                found = False
            found = found or (event["event"] == "evaluation" and event["which"] == which)
        return found

    def _measure_before(self, supervisor: Supervisor) -> None:
        """Held-out skill of the first published version, through the fleet, before anything is trained."""
        registry = wiring.build_registry(self._paths)
        for tries_left in reversed(range(_EVALUATION_TRIES)):
            self._watch(supervisor, until=lambda: bool(registry.ready()) or supervisor.has_finished("learner"))
            ready = registry.ready()
            if not ready or self._measured("before") or self._should_stop():
                return
            try:
                result = self._meanwhile(supervisor, self._evaluate_on(ready[0]))
            except ReplicaError as error:
                if not (error.retryable and tries_left):
                    raise
                self._metrics.write("retry", error=f"held-out evaluation before training: {error}")
                time.sleep(_TICK_S)
                continue
            if result is not None:
                self._record("before", result)
            return

    def _meanwhile(self, supervisor: Supervisor, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` returns; it is looked after the processes meanwhile. None if a stop is asked for."""

        async def watched() -> T | None:
            task = asyncio.create_task(work)
            try:
                while not task.done() and not self._should_stop():
                    supervisor.check()
                    self._update_view()
                    await asyncio.wait([task], timeout=_TICK_S)
            finally:
                task.cancel()
                await asyncio.wait([task])
            return None if task.cancelled() else task.result()

        return asyncio.run(watched())

    async def _evaluate_on(self, replica: ReplicaRow) -> Evaluation:
        encoder, _ = wiring.build_encoder(self._config, wiring.base_model_dir(self._config, self._paths))
        keys = wiring.build_keys(self._config, self._paths)
        token = keys.token("inference", replica.url, replica.start)
        async with aiohttp.ClientSession() as session:
            return await evaluate(
                VllmClient(replica.url, session, token=token),
                wiring.build_task(self._config),
                encoder,
                num_problems=self._config.evaluation.num_problems,
                max_tokens=self._config.evaluation.max_tokens or self._config.rollout.max_tokens,
                num_samples=self._config.evaluation.num_samples_shown,
                timeout_s=self._config.rollout.request_timeout_s,
                temperature=self._config.evaluation.temperature,
                reward_timeout_s=self._config.rollout.reward_timeout_s,
            )

    def _measure_after(self, supervisor: Supervisor) -> None:
        """Held-out skill of the last checkpoint, converted, on a vLLM server of its own."""
        if self._measured("after"):
            return
        if not self._paths.final_model.exists():
            self._start(supervisor, self._planned("convert"))
            self._watch(supervisor, until=lambda: supervisor.has_finished("convert"))
        if self._should_stop():
            return
        result = self._meanwhile(supervisor, evaluate_folder(self._config, self._paths, self._paths.final_model))
        if result is not None:
            self._record("after", result)

    def _record(self, which: str, result: Evaluation) -> None:
        self._metrics.write("evaluation", which=which, **result.as_fields())
        self._update_view()


def train(start: Start, *, profile_steps: int = 0, dry: bool = False) -> int:
    """Runs the job, or says what it would be; returns the process's exit status.

    Raises:
      InUseError: another process works on the run.
    """
    config, paths = start.config, wiring.run_paths(start.config)
    if dry:
        tell(start.changes)
        return dry_run(config, paths, profile_steps=profile_steps)
    is_new = not paths.directory.exists()
    if is_new:
        preflight("train", config, paths)  # what can't start leaves nothing behind
    with in_charge(paths):
        if not is_new:
            preflight("train", config, paths)
        wiring.make_private_directory(paths)
        require_original(config, paths)
        tell(start.changes)
        if start.reopens:
            keep_results(paths)
        record(start, paths)
        looked(paths)
        stop = wiring.StopRequest().install()
        with LiveView(config, paths.directory) as view:
            complete = Job(config, paths, view, stop, profile_steps=profile_steps).run()
    if not complete:
        print(f"stopped; the same command goes on from the last checkpoint in {printable(paths.directory)}")
        return _INTERRUPTED
    summary = write_summary(paths.directory)
    write_report(paths.directory)
    print(printable(headline(summary, paths.directory), keep_lines=True))
    return 0


@contextlib.contextmanager
def in_charge(paths: RunPaths) -> Iterator[None]:
    """Keeps others from starting the same run, and waits until what an earlier start left has ended."""
    if not paths.directory.is_dir():
        wiring.make_private_directory(paths)
    place = wiring.locks(paths) / "train"
    with sole(place, f"run directory {paths.directory}", hint="stop it first, or give another --set run.directory=DIR"):
        wait_until_free(wiring.locks(paths) / "processes", Waits(), limit_s=_ENDING_S)
        yield


def main() -> None:
    parser = command_parser("train", __doc__)
    wiring.config_arguments(parser, required=False)
    wiring.profile_argument(parser)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="carry on this run directory, also a finished one")
    parser.add_argument("--dry-run", action="store_true", help="print settings, checks and all that would be started")
    arguments = parser.parse_args()
    if (arguments.config is None) == (arguments.resume is None):
        parser.error("expected either --config FILE or --resume RUN")
    with wiring.clear_errors():
        if arguments.resume is not None:
            start = resume(arguments.resume, arguments.overrides)
        else:
            start = choose(load_config(arguments.config, arguments.overrides))
        try:
            status = train(start, profile_steps=arguments.profile, dry=arguments.dry_run)
        except KeyboardInterrupt:
            print("ended at once; the same command goes on from the last checkpoint")
            status = _INTERRUPTED
    raise SystemExit(status)


if __name__ == "__main__":
    main()
