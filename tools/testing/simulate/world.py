"""One simulated run: real queue, gate, fleet controller, weight rounds and rollout workers between simulated disks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.runtime import Waits, WeirError
from rewards.contracts import Problem, RewardRequest, RewardResult, scored
from serving_bridge.fleet import Fleet
from serving_bridge.queue import TrajectoryQueue
from serving_bridge.rollout import RolloutWorker, RunIdentity
from serving_bridge.routing import ReplicaRow
from serving_bridge.settings import EvaluationSettings
from tools.testing.fake_vllm import Engine, EngineSettings, Worker
from tools.testing.simulate.checks import Checks
from tools.testing.simulate.disks import (
    VOCAB_SIZE,
    ArithmeticWeights,
    SimulatedCheckpoints,
    SimulatedDatabase,
    SimulatedRegistry,
    SimulatedStore,
    memory_database,
)
from tools.testing.simulate.learner import LearnerPlan, SimulatedLearner
from tools.testing.simulate.loop import Process, ProcessDiedError, SimulatedLoop
from tools.testing.simulate.network import Network
from tools.testing.simulate.server import SimulatedServer
from tools.testing.simulate.setting import LOOK_S, MAX_MODEL_LEN, draw_setting


@dataclass
class Odds:
    """Probabilities of what goes wrong at a transaction or an effect, and of what an engine's start does."""

    database: float = 0.0
    crash: float = 0.0
    bad_start: float = 0.0
    bad_load: float = 0.0


class World:
    """Everything of one seed. Use `tools.testing.simulate.run`.

    Args:
      show: prints the trace.
      folder: for the fleet controller's order book, the one thing that goes to a real disk.
    """

    def __init__(self, seed: int, *, folder: Path, show: bool = False) -> None:
        self.draws = random.Random(seed)
        self.setting = draw_setting(self.draws)
        self.loop = SimulatedLoop(lambda: self.draws.uniform(0, 0.3) if self.draws.random() < 0.02 else 0.0)
        self.network = Network(self.loop, random.Random(self.draws.random()), self.trace)
        self.odds = Odds()
        self.counts: Counter[str] = Counter()
        self.store, self.checkpoints = SimulatedStore(), SimulatedCheckpoints(keep=2)
        self.database = memory_database()
        self.checks = Checks(
            max_staleness=self.setting.pace.max_staleness,
            groups_per_step=self.setting.pace.groups_per_step,
            store=self.store,
            checkpoints=self.checkpoints,
            database=self.database,
        )
        self.processes: dict[str, Process] = {}
        self.finished = False
        self.learner_now: SimulatedLearner | None = None
        self._waits: dict[str, Waits] = {}
        self._starts: dict[str, Callable[[], None]] = {}
        self._restarting: set[str] = set()
        self._rows: dict[str, ReplicaRow] = {}
        self._totals: dict[str, dict[str, tuple[int, int]]] = {}
        self._folder, self._show = folder, show
        self._hash = hashlib.blake2b(digest_size=12)
        self._ports = 0

    # Record.

    def trace(self, *what: object) -> None:
        line = f"{self.loop.time():.6f} " + " ".join(map(str, what))
        self._hash.update(line.encode())
        if self._show:
            print(line, flush=True)

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()

    # Processes.

    def supervise(self, name: str, life: Callable[[Process], Coroutine[Any, Any, None]]) -> None:
        """Keeps a process running: when it ends with an error, or is killed, it is started again after a while."""

        def start() -> None:
            self._restarting.discard(name)
            process = self.processes[name] = Process(name, self.loop)
            self._waits[name] = Waits(self.loop.time)
            self.trace("start", name)
            process.run_main(life(process))
            self.loop.when_done(process.ended, lambda future: ended(process, future.result()))

        def ended(process: Process, error: BaseException | None) -> None:
            self.trace("end", name, type(error).__name__ if error else "")
            self.counts[f"{name} ended"] += 1
            if error is not None and not isinstance(error, WeirError):
                self.checks.violated(f"{name} ended with {type(error).__name__}, which is no error of ours: {error}")
            if self.processes[name] is process:  # else another one has taken its place
                self._start_later(name)

        self._starts[name] = start
        start()

    def replace(self, process: Process) -> None:
        """Starts another process in the place of one that is thought dead, and may not be."""
        self._start_later(process.name)

    def _start_later(self, name: str) -> None:
        if not self.finished and name not in self._restarting:
            self._restarting.add(name)
            self.loop.call_later_for_nobody(self.draws.uniform(0.1, 1.5), self._starts[name])

    def effect(self, process: Process, name: str) -> None:
        """Something on a disk was, or is about to be, done: the process may end here."""
        process.check()
        if self.odds.crash and self.draws.random() < self.odds.crash:
            self.trace("crash", process.name, name)
            self.counts[f"crash: {name}"] += 1
            process.kill()
            raise ProcessDiedError(process.name)

    def queue(self, process: Process) -> TrajectoryQueue:
        database = SimulatedDatabase(self.database, process, self._database_fate, self.checks.committed)
        return TrajectoryQueue(
            database=database,
            lease_s=self.setting.lease_s,
            claim_lease_s=self.setting.claim_lease_s,
            bounds=self.setting.bounds,
            clock=process.wall_clock,
            waits=self._waits[process.name],
            consumer=process.name,
        )

    def registry(self, process: Process) -> SimulatedRegistry:
        return SimulatedRegistry(process, self._rows, self._totals, self._folder)

    def _database_fate(self) -> str:
        if not self.odds.database or self.draws.random() >= self.odds.database:
            return "ok"
        fates = ("twice", "full", "broken", "uncertain", "crash before commit", "crash after commit")
        fate = self.draws.choice(fates)
        self.trace("database", fate)
        self.counts[f"database: {fate}"] += 1
        return fate

    # What each process does.

    async def learner(self, process: Process) -> None:
        plan = LearnerPlan(
            steps=self.setting.pace.total_steps,
            groups_per_step=self.setting.pace.groups_per_step,
            max_staleness=self.setting.pace.max_staleness,
            checkpoint_every=self.setting.checkpoint_every,
            max_wait_s=self.setting.max_wait_s,
            train_s=0.2,
            publish_s=lambda: self.draws.uniform(0.0, 0.2),
            commit_s=lambda: self.draws.uniform(0.0, 0.6),
        )
        learner = SimulatedLearner(
            process,
            plan,
            queue=self.queue(process).consumer,
            store=self.store,
            checkpoints=self.checkpoints,
            waits=self._waits[process.name],
            on_train=self.checks.training,
            effect=lambda name: self.effect(process, name),
            trace=self.trace,
        )
        self.learner_now = learner
        await learner.run()
        self.checks.finished(self.setting.pace.total_steps)
        self.finished = True

    async def rollout(self, process: Process) -> None:
        worker = RolloutWorker(
            name=process.name,
            identity=RunIdentity("sim", self.setting.rollout.group_size),
            task=_Task(),  # type: ignore[arg-type]
            encoder=_Encoder(),  # type: ignore[arg-type]
            queue=self.queue(process).producer,
            registry=self.registry(process),  # type: ignore[arg-type]
            settings=self.setting.rollout,
            evaluation=EvaluationSettings(),
            pace=self.setting.pace,
            log=lambda event, **fields: self._log(process, event, fields),
            should_stop=lambda: False,
            vocab_size=VOCAB_SIZE,
            waits=self._waits[process.name],
            open_session=lambda: self.network.session(process),
            rng=random.Random(self.draws.random()),
            scoring=_Inline(),  # type: ignore[arg-type]
            queue_thread=_Inline(),  # type: ignore[arg-type]
            tick_s=LOOK_S,
            renew_every_s=self.setting.claim_lease_s / 4,
        )
        await worker.run()

    async def fleet(self, process: Process) -> None:
        async def inline(work: Callable[..., Any], *arguments: Any) -> Any:
            process.check()
            return work(*arguments)

        servers: list[SimulatedServer] = []

        def make(name: str, port: int) -> SimulatedServer:
            server = SimulatedServer(
                name,
                settings=self.setting.serving,
                session=self.network.session(process),
                waits=self._waits[process.name],
                draws=self.draws,
                bad_start=lambda: self.odds.bad_start,
                start_engine=self._start_engine,
            )
            servers.append(server)
            return server

        # The guard ends a controller's servers when the controller is gone, a moment later.
        def end_servers(_: Any) -> None:
            for server in servers:
                self.loop.call_later_for_nobody(self.draws.uniform(0, 0.5), server.end)

        self.loop.when_done(process.ended, end_servers)
        fleet = Fleet(
            self.setting.serving,
            model_dir=Path("/simulated"),
            store=self.store,  # type: ignore[arg-type]
            registry=self.registry(process),  # type: ignore[arg-type]
            log_dir=Path("/simulated"),
            keep_versions=4,
            log=lambda event, **fields: self._log(process, event, fields),
            should_stop=lambda: False,
            name="fleet",
            make_replica=make,
            open_session=contextlib.nullcontext,
            run_blocking=inline,
            waits=self._waits[process.name],
            clock=process.wall_clock,
        )
        await fleet.run()

    def _log(self, process: Process, event: str, fields: dict[str, Any]) -> None:
        process.check()
        if event not in ("interval",):
            self.trace(process.name, event, *(f"{key}={value}" for key, value in fields.items() if key != "error"))
        if event == "round":
            self.counts[f"round: {fields['outcome']}"] += 1

    def _start_engine(self, name: str) -> tuple[Process, str]:
        """A server process; it listens at once."""
        self._ports += 1
        url = f"http://{name}:{self._ports}"
        process = self.processes[name] = Process(name, self.loop)
        weights = ArithmeticWeights(self.store)
        worker = Worker(
            weights,
            root=self.store.root,
            clock=self.loop.time,
            start_reading=lambda read: process.spawn(_later(self.draws.uniform(0, 0.1), read)),  # type: ignore[arg-type]
        )
        if self.draws.random() < self.odds.bad_load:
            weights.flips, worker.breaks = self.draws.choice([(1, 0), (0, 1), (2, 0)])
        incarnation = f"{name}#{self._ports}"
        engine = Engine(
            worker,
            EngineSettings(max_model_len=MAX_MODEL_LEN, token_s=0.03, control_s=0.02),
            draws=random.Random(self.draws.random()),
            on_sample=lambda version, count: self.checks.sampled(incarnation, version, weights.identity),
        )
        self.network.engines[url] = process, engine
        return process, url

    def check_waits(self) -> None:
        for name, waits in self._waits.items():
            process = self.processes[name]
            if process.is_alive and process.stopped_until_s + 1.0 < self.loop.time():
                self.checks.waiting(name, waits)


class _Inline:
    """In place of a pool of threads: the loop does the work itself."""

    def submit(self, *arguments: Any) -> None:
        raise RuntimeError("work must go through the event loop")


class _Task:
    version = "sim"

    def problem(self, split: str, index: int) -> Problem:
        return Problem(index=index, question=f"{index}", answer="", metadata={})

    def score(self, request: RewardRequest) -> RewardResult:
        return scored(0.5, {"score": 0.5})


class _Tokenizer:
    fingerprint = "sim"
    eos_ids = (1,)

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


class _Encoder:
    tokenizer = _Tokenizer()

    def encode(self, problem: Problem) -> list[int]:
        return [2 + problem.index % 50, 3, 5]


async def _later(seconds: float, work: Callable[[], None]) -> None:
    await asyncio.sleep(seconds)
    work()
