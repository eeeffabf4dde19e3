"""One simulated run: its processes, what they share, and what may happen to them; `parts` is what each of them does."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.runtime import Waits, WeirError
from serving_bridge.fleet import Fleet
from serving_bridge.queue import TrajectoryQueue
from serving_bridge.routing import Dispatcher, ReplicaRow
from serving_bridge.weights import WeightStore
from tools.testing.simulate.blocking import BlockingWork, is_blocking, sleep
from tools.testing.simulate.checks import RunChecks
from tools.testing.simulate.disk import Disk, Effect
from tools.testing.simulate.file_checks import FileChecks
from tools.testing.simulate.holds import Holds
from tools.testing.simulate.learner import SimulatedLearner
from tools.testing.simulate.loop import Process, ProcessDiedError, SimulatedLoop, current_process
from tools.testing.simulate.network import Network
from tools.testing.simulate.queue_checks import QueueChecks
from tools.testing.simulate.setting import draw_setting
from tools.testing.simulate.shared import SharedDatabase, SimulatedDatabase, SimulatedRegistry
from tools.testing.simulate.violations import Violations

#: Words of what may leave a file that no row needs. The power and a crash count by themselves: that their processes
#: have ended is counted a moment later.
_TROUBLES = ("ended", "database", "power", "crash")


@dataclass
class Odds:
    """Probabilities of what goes wrong at a transaction or an effect, and of what an engine's start does.

    Attributes:
      power: that it is the whole machine that goes down where a process would crash.
      replaced: that a learner is held up at a crash point, thought dead, and goes on later.
    """

    database: float = 0.0
    crash: float = 0.0
    power: float = 0.0
    replaced: float = 0.0
    bad_start: float = 0.0
    bad_load: float = 0.0


class World:
    """Everything of one seed. Use `tools.testing.simulate.run`.

    Args:
      show: prints the trace.
      folder: for all files of the run.
    """

    def __init__(self, seed: int, *, folder: Path, show: bool = False) -> None:
        self.draws = random.Random(seed)
        self.setting = draw_setting(self.draws)
        self.loop = SimulatedLoop(lambda: self.draws.uniform(0, 0.3) if self.draws.random() < 0.02 else 0.0)
        self.network = Network(self.loop, random.Random(self.draws.random()), self.trace)
        self.odds = Odds()
        self.counts: Counter[str] = Counter()
        self.violations = Violations()
        self.blobs, self.weights, self.checkpoints = folder / "blobs", folder / "weights", folder / "checkpoints"
        self.checkpoints.mkdir()
        self.files = FileChecks(
            self.violations,
            blobs=self.blobs,
            weights=self.weights,
            checkpoints=self.checkpoints,
            in_use=lambda: [row.version for row in self._rows.values()],
        )
        self.disk = self.files.disk = Disk(folder, self._on_disk)
        self.store = WeightStore(self.weights, run="sim")
        self.database = SharedDatabase()
        self.checks = RunChecks(self.violations, self.setting.pace, self.files)
        self.rows = QueueChecks(
            self.violations, self.setting, self.database.real, self.files, self.files.trained_on_disk
        )
        self.holds = Holds(seed, self.violations, self.loop.time)
        self.processes: dict[str, Process] = {}
        self.finished = False
        self.learner_now: SimulatedLearner | None = None
        #: every life of the learner, also one that was replaced and goes on
        self.learners: dict[Process, SimulatedLearner] = {}
        self.fleet_now: Fleet | None = None
        self.blocking: list[BlockingWork] = []
        #: every process that was ever started: one that was replaced may live on
        self._everyone: list[Process] = []
        self._dispatchers: dict[str, tuple[Process, Dispatcher]] = {}
        self.servers: dict[str, tuple[Process | None, Process]] = {}
        self._identities = 0
        self._is_failing = False
        self.waits: dict[str, Waits] = {}
        self._starts: dict[str, Callable[[], None]] = {}
        self._restarting: set[str] = set()
        self._rows: dict[str, ReplicaRow] = {}
        self._totals: dict[str, dict[str, tuple[int, int]]] = {}
        self._folder, self._show = folder, show
        self._hash = hashlib.blake2b(digest_size=12)
        self.ports = 0

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
            process = self._new_process(name)
            self.waits[name] = Waits(self.loop.time)
            self.trace("start", name)
            process.run_main(life(process))
            self.loop.when_done(process.ended, lambda future: ended(process, future.result()))

        def ended(process: Process, error: BaseException | None) -> None:
            self.trace("end", name, type(error).__name__ if error else "")
            if error and self._show:
                print(error, flush=True)
            self.counts[f"{name} ended"] += 1
            # Of one that was replaced while it was stopped, files may be gone that only it needed.
            is_replaced = self.processes[name] is not process and isinstance(error, OSError)
            if error is not None and not isinstance(error, WeirError) and not is_replaced:
                what = f"{name} ended with {type(error).__name__}, which is no error of ours: {error}"
                self.violations.note("unknown error", what)
            if self.processes[name] is process:  # else another one has taken its place
                self._start_later(name)

        self._starts[name] = start
        start()

    def replace(self, process: Process) -> None:
        """Starts another process in the place of one that is thought dead, and may not be."""
        self._start_later(process.name)

    def _new_process(self, name: str) -> Process:
        process = self.processes[name] = Process(name, self.loop)
        self._everyone.append(process)
        return process

    def _start_later(self, name: str) -> None:
        if not self.finished and name not in self._restarting:
            self._restarting.add(name)
            self.loop.call_later_for_nobody(self.draws.uniform(0.1, 1.5), self._starts[name])

    # Effects.

    def effect(self, process: Process, name: str) -> None:
        """Something was, or is about to be, done: the process may end here."""
        process.check()
        if self.odds.crash and self.draws.random() < self.odds.crash:
            self.trace("crash", process.name, name)
            self.counts[f"crash: {name}"] += 1
            self.crash(process)
            raise ProcessDiedError(process.name)

    def passed(self, name: str) -> None:
        """A crash point in the code: the process may end there, or be held up until another has taken its place."""
        process = current_process()
        if process is None:
            return
        self.effect(process, name)
        is_learner = process is self.processes["learner"] and is_blocking() and not self.finished
        if is_learner and self.odds.replaced and self.draws.random() < self.odds.replaced:
            self.trace("replaced", name)
            self.counts["replaced"] += 1
            self.replace(process)
            sleep(self.draws.uniform(0.5, 4.0))

    def crash(self, process: Process) -> None:
        """Ends a process, or the machine with all of them."""
        if self.draws.random() < self.odds.power:
            self.fail()
        process.kill()

    def fail(self) -> None:
        """The power fails: all processes end, and what was not synced is gone."""
        self.trace("power failure")
        self.counts["power failure"] += 1
        for process in self._everyone:
            process.kill()
        self._is_failing = True
        self.disk.fail(self.draws)
        self.database.fail(self.draws)
        self.files.put_aside_torn()
        self.disk.settle()
        self._is_failing = False
        self.rows.lost_power()

    def _on_disk(self, effect: Effect) -> None:
        if self._is_failing:
            return
        process = current_process()
        if process is not None:
            process.check()
        place = effect.path.parent if effect.path.is_absolute() else self.weights
        if place == self._folder:  # the order book, which nothing is lost with
            return
        self.files.effect(effect)
        if process is not None:
            self.effect(process, f"{effect.kind} {'done' if effect.done else 'due'}")

    def queue(self, process: Process) -> TrajectoryQueue:
        database = SimulatedDatabase(
            self.database,
            process,
            draw_fate=self._database_fate,
            crash=self.crash,
            audit=lambda process: self.rows.committed(process, is_synced=self.database.is_synced),
        )
        return TrajectoryQueue(
            database=database,
            blobs=self.blobs,
            blob_bytes=self.setting.blob_bytes,
            lease_s=self.setting.lease_s,
            claim_lease_s=self.setting.claim_lease_s,
            bounds=self.setting.bounds,
            clock=process.wall_clock,
            waits=self.waits[process.name],
            consumer=process.name,
        )

    def registry(self, process: Process) -> SimulatedRegistry:
        return SimulatedRegistry(process, self._rows, self._totals, self._folder, self.checks.listed)

    def _database_fate(self) -> str:
        if not self.odds.database or self.draws.random() >= self.odds.database:
            return "ok"
        fates = ("twice", "full", "broken", "uncertain", "crash before commit", "crash after commit")
        fate = self.draws.choice(fates)
        self.trace("database", fate)
        self.counts[f"database: {fate}"] += 1
        return fate

    def new_identity(self) -> int:
        self._identities += 1
        return self._identities

    def in_background(self, work: Callable[[], None]) -> Any:
        """In place of a learner's thread; asked for by the learner that runs now."""
        process = current_process()
        assert process is not None
        process.check()
        return self.learners[process].in_background(work)

    def abandon(self) -> None:
        """Ends the simulation."""
        for process in self._everyone:
            process.is_alive = False
        for work in self.blocking:
            work.abandon()
        self.loop.abandon()
        self.database.real.close()

    def dispatcher(self, *arguments: Any) -> Dispatcher:
        """In place of the class, in the worker that runs now."""
        made = Dispatcher(*arguments)
        process = current_process()
        assert process is not None
        self._dispatchers[process.name] = process, made
        return made

    def log(self, process: Process, event: str, fields: dict[str, Any]) -> None:
        process.check()
        if event not in ("interval",):
            self.trace(process.name, event, *(f"{key}={value}" for key, value in fields.items() if key != "error"))
        if event == "round":
            self.counts[f"round: {fields['outcome']}"] += 1

    def look(self) -> None:
        """What can be checked at any time."""
        self.files.look()
        self.files.freed(sum(count for what, count in self.counts.items() if any(word in what for word in _TROUBLES)))
        for name, waits in self.waits.items():
            process = self.processes[name]
            if process.is_alive and process.stopped_until_s + 1.0 < self.loop.time():
                self.checks.waiting(name, waits)
        for process, dispatcher in self._dispatchers.values():
            if process.is_alive and process.stopped_until_s < self.loop.time():
                taken = {target.url: target.in_flight for target in dispatcher._targets.values()}
                self.checks.slots(process.name, taken, dispatcher._in_flight, self.network.sent[process.name])
        fleet = self.fleet_now
        if fleet is not None and self.processes["fleet"].is_alive:
            most = self.setting.serving.updates_at_once or len(fleet.members)
            self.checks.rounds(sum(member.in_round for member in fleet.members), most)
