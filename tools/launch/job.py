"""A whole job: its processes started in order, on this machine or its hosts, looked after, and ended together."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from configs.schema import Config
from learner_jax.runtime import Waits
from learner_jax.settings import HOSTS_SECRET
from serving_bridge.evaluation import Evaluation
from serving_bridge.processes import Supervisor
from serving_bridge.telemetry import MetricsTail, read_metrics, reported_waits
from serving_bridge.vllm import ReplicaError
from tools.assembly import (
    Here,
    Placement,
    Planned,
    RunPaths,
    WorkerHold,
    base_model_dir,
    build_registry,
    fresh_coordinator,
    learner_commands,
    metrics_log,
    planned,
    variables_to_hand_on,
    warm_start_commands,
    watched,
)
from tools.launch.evaluation import (
    NotServedError,
    ServedSkill,
    evaluate_folder,
    evaluate_newest,
    evaluate_replica,
)
from tools.reporting import LAST_PHASE, STOPPED_PHASE, LiveView

T = TypeVar("T")

_TICK_S = 0.25
#: a tick while something is waited for that a run can't begin without
_START_TICK_S = 0.05
#: between two starts of a worker that ended well while the learner goes on
_WORKER_AGAIN_S = 5.0
_EVALUATION_TRIES = 3
#: what is started when training has ended
_AT_THE_END = ("convert", "evaluate")


class Job:
    """One run of the job; everything it starts is stopped when it ends, however it ends.

    Args:
      place: where its processes run; on this machine if None.
    """

    def __init__(
        self,
        config: Config,
        paths: RunPaths,
        view: LiveView,
        should_stop: Callable[[], bool],
        *,
        profile_steps: int = 0,
        place: Placement | None = None,
    ):
        self._config = config
        self._place = place or Here(config)
        self._profile_steps = profile_steps
        self._paths = paths
        self._view = view
        self._should_stop = should_stop
        self._metrics = watched(metrics_log(config, paths, "train"), config, paths, "train", "train")
        self._tail = MetricsTail(paths.metrics)
        self._waits = Waits()
        self._hold = WorkerHold(paths.workers_held)
        self._worker_starts_s: dict[str, float] = {}
        self._has_compiled = False

    def run(self) -> bool:
        """Returns whether the run is complete (and not stopped in between)."""
        base_model_dir(self._config, self._paths)  # made here, before the processes that need it start
        also = (*self._config.serving.environment, *variables_to_hand_on(self._config))
        with (
            reported_waits(self._waits, self._metrics.write, clock=time.monotonic),
            Supervisor(self._paths.logs, self._metrics.write, waits=self._waits, also=also) as supervisor,
            self._workers_held(),
        ):
            for part in (self._begin, self._train, self._measure_after):
                part(supervisor)
                if stopped := self._should_stop():
                    break
        self._phase(STOPPED_PHASE if stopped else LAST_PHASE)
        return not stopped

    @contextmanager
    def _workers_held(self) -> Iterator[None]:
        """Workers that are started wait until `_train`, if skill before training is still to be measured."""
        self._hold.lift()
        if not _is_measured(self._paths, "before"):
            self._hold.set()
        try:
            yield
        finally:
            self._hold.lift()

    def _begin(self, supervisor: Supervisor) -> None:
        """Starts all in order, unless a stop is asked for; workers load while engines do, but after the learner."""
        self._phase("starting")
        self._has_compiled = False  # in this life
        for process in self._planned():
            if self._should_stop() or process.name in _AT_THE_END:
                break
            if process.name == "warm_start":
                self._phase("supervised start")
            if process.role == "rollout" and not self._workers_may_load(supervisor):
                break
            self._start(supervisor, process)
            if process.role == "rollout":
                self._worker_starts_s[process.name] = time.monotonic()
            if process.name == "warm_start":
                self._watch(supervisor, until=lambda: supervisor.has_finished("warm_start"))
        if not self._should_stop():
            self._measure_before(supervisor)

    def _workers_may_load(self, supervisor: Supervisor) -> bool:
        """Waits until the learner has compiled, or a replica is ready; False if a stop was asked for meanwhile.

        Before, there is nothing to sample, and on a small machine they would take cores that both need.
        """
        self._watch(supervisor, until=lambda: self._has_compiled or self._is_served(supervisor), tick_s=_START_TICK_S)
        return not self._should_stop()

    def _is_served(self, supervisor: Supervisor) -> bool:
        """Whether a replica is ready, or none is needed any more."""
        return bool(build_registry(self._paths).ready()) or supervisor.has_finished("learner")

    def _train(self, supervisor: Supervisor) -> None:
        self._phase("training")
        self._hold.lift()
        workers = [process for process in self._planned() if process.role == "rollout"]
        started = self._worker_starts_s

        def keep_up() -> None:
            """A worker that met the run as it had finished before ends well, and is needed all the same."""
            for worker in workers:
                since_s = time.monotonic() - started[worker.name]
                if since_s >= _WORKER_AGAIN_S and supervisor.has_finished(worker.name):
                    started[worker.name] = time.monotonic()
                    self._start(supervisor, worker)

        self._watch(supervisor, until=lambda: supervisor.has_finished("learner"), meanwhile=keep_up)
        if self._should_stop():
            return
        self._phase("evaluating")
        for worker in workers:
            supervisor.ask_to_stop(worker.name)

    def _planned(self) -> list[Planned]:
        return list(planned(self._config, self._paths, profile_steps=self._profile_steps, place=self._place))

    def _process(self, name: str) -> Planned:
        return next(process for process in self._planned() if process.name == name)

    def _start(self, supervisor: Supervisor, process: Planned) -> None:
        supervisor.start_group(
            process.name,
            _commands_of(process, self._config, self._paths, self._place, self._profile_steps),
            restarts=process.restarts,
            grace_s=process.grace_s,
            end_s=process.end_s,
            stop_signal=process.stop_signal,
        )

    def _watch(
        self,
        supervisor: Supervisor,
        *,
        until: Callable[[], bool],
        meanwhile: Callable[[], None] = lambda: None,
        tick_s: float = _TICK_S,
    ) -> None:
        """Keeps the view fresh and the processes alive until something holds or a stop is asked for."""
        while not until() and not self._should_stop():
            supervisor.check()
            meanwhile()
            self._update_view()
            time.sleep(tick_s)
        if not self._should_stop():
            supervisor.check()
        self._update_view()

    def _update_view(self) -> None:
        self._hold.renew()
        found = self._tail.read()
        self._has_compiled = self._has_compiled or any(event["event"] == "compiled" for event in found)
        self._view.update(found)

    def _phase(self, name: str) -> None:
        self._metrics.write("phase", name=name)
        self._update_view()

    def _measure_before(self, supervisor: Supervisor) -> None:
        """Held-out skill of the first published version, through the fleet, before anything is trained."""
        registry = build_registry(self._paths)
        for tries_left in reversed(range(_EVALUATION_TRIES)):
            self._watch(supervisor, until=lambda: self._is_served(supervisor), tick_s=_START_TICK_S)
            ready = registry.ready()
            if not ready or _is_measured(self._paths, "before") or self._should_stop():
                return
            try:
                result = self._meanwhile(supervisor, evaluate_replica(self._config, self._paths, ready[0]))
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

    def _measure_after(self, supervisor: Supervisor) -> None:
        """Held-out skill of the last checkpoint, which is converted meanwhile.

        It is asked of the fleet. Unless the fleet serves the very weights of the converted folder, a vLLM server of its
        own is started on the folder.
        """
        if _is_measured(self._paths, "after"):
            return
        is_converted = self._paths.final_model.exists()
        if not is_converted:
            self._start(supervisor, self._process("convert"))
        served = self._by_the_fleet(supervisor)
        for process in self._planned():
            if process.role == "fleet" and process.name != "evaluate":
                supervisor.ask_to_stop(process.name)
        if not is_converted:
            self._watch(supervisor, until=lambda: supervisor.has_finished("convert"))
        if self._should_stop():
            return
        if served is not None and self._is_of_the_folder(served):
            self._record("after", served.result)
        elif self._place.is_elsewhere:  # there may be no vLLM on this host
            self._start(supervisor, self._process("evaluate"))
            self._watch(supervisor, until=lambda: supervisor.has_finished("evaluate"))
        else:
            result = self._meanwhile(supervisor, evaluate_folder(self._config, self._paths, self._paths.final_model))
            if result is not None:
                self._record("after", result)

    def _by_the_fleet(self, supervisor: Supervisor) -> ServedSkill | None:
        """What a replica with the newest version shows; None if there is none, or a stop is asked for."""
        try:
            return self._meanwhile(supervisor, evaluate_newest(self._config, self._paths, self._waits))
        except (ReplicaError, NotServedError) as error:
            self._not_by_the_fleet(error)
            return None

    def _is_of_the_folder(self, served: ServedSkill) -> bool:
        try:
            served.require(self._paths.final_model)
        except NotServedError as error:
            self._not_by_the_fleet(error)
            return False
        return True

    def _not_by_the_fleet(self, error: Exception) -> None:
        self._metrics.write("retry", error=f"held-out evaluation after training, by the fleet: {error}")

    def _record(self, which: str, result: Evaluation) -> None:
        self._metrics.write("evaluation", which=which, **result.as_fields())
        self._update_view()


def _commands_of(
    process: Planned, config: Config, paths: RunPaths, place: Placement, profile_steps: int
) -> Callable[[], list[list[str]]]:
    """Asked for at each start: the learner's hosts meet at another port each time."""
    match process.name:
        case "learner":
            return lambda: learner_commands(
                config, paths, profile_steps=profile_steps, coordinator=_coordinator(config, place), place=place
            )
        case "warm_start":
            return lambda: warm_start_commands(config, paths, coordinator=_coordinator(config, place), place=place)
    return lambda: process.commands


def _coordinator(config: Config, place: Placement) -> str:
    """Where the learner's hosts meet at their next start."""
    if config.learner.hosts.count > 1:
        # Other users of this machine can reach the hosts' port, and don't know this.
        os.environ.setdefault(HOSTS_SECRET, secrets.token_hex(32))
    return fresh_coordinator(config, place)


def _is_measured(paths: RunPaths, which: str) -> bool:
    """Whether skill was measured, after training since the run was last carried on."""
    found = False
    for event in read_metrics(paths.metrics):
        if event["event"] == "carried_on" and which == "after":
            found = False
        found = found or (event["event"] == "evaluation" and event["which"] == which)
    return found
