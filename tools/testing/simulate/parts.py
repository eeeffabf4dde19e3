"""What each process of a simulated run does: Weir's own code between simulated disks, network and engines."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learner_jax.contracts import Trajectory
from rewards.contracts import Problem, RewardRequest, RewardResult, scored
from serving_bridge.fleet import Fleet
from serving_bridge.rollout import RolloutWorker, RunIdentity
from serving_bridge.settings import EvaluationSettings
from tools.testing.fake_vllm import Engine, EngineSettings, Worker
from tools.testing.simulate.blocking import BlockingWork
from tools.testing.simulate.checkpoints import SimulatedCheckpoints, read_state
from tools.testing.simulate.learner import SimulatedLearner
from tools.testing.simulate.loop import Process
from tools.testing.simulate.server import SimulatedServer
from tools.testing.simulate.setting import LOOK_S, MAX_MODEL_LEN, LearnerPlan
from tools.testing.simulate.weights import VOCAB_SIZE, ArithmeticWeights
from tools.testing.simulate.world import World


async def learner(world: World, process: Process) -> None:
    """A life of the learner, to the end of the run."""
    plan = LearnerPlan(
        steps=world.setting.pace.total_steps,
        groups_per_step=world.setting.pace.groups_per_step,
        max_staleness=world.setting.pace.max_staleness,
        checkpoint_every=world.setting.checkpoint_every,
        max_wait_s=world.setting.max_wait_s,
        train_s=0.1,
        publish_s=lambda: world.draws.uniform(0.0, 0.2),
    )
    waits = world.waits[process.name]

    def trains(groups: Sequence[Sequence[Trajectory]], version: int, history: set[str]) -> None:
        world.holds.seen("trains", process)
        world.checks.training(groups, version, history)

    def claims(version: int, identity: int) -> None:
        world.holds.seen("publishes", process)
        world.files.claimed(version, identity)

    checkpoints = SimulatedCheckpoints(
        world.checkpoints,
        keep=2,
        process=process,
        waits=waits,
        save_s=lambda: world.draws.uniform(0.0, 0.2),
        on_proven=world.files.proven.add,
        on_deleted=world.files.proven.discard,
    )
    learner = SimulatedLearner(
        process,
        plan,
        queue=world.queue(process).consumer,
        weights=world.weights,
        checkpoints=checkpoints,
        waits=waits,
        hold=world.holds.reason,
        new_identity=world.new_identity,
        on_train=trains,
        on_claimed=claims,
        on_published=world.files.published,
        trace=world.trace,
    )
    world.learner_now = world.learners[process] = learner
    work = BlockingWork(process, learner.run)
    world.blocking.append(work)
    mending = asyncio.create_task(learner.mend())
    try:
        await work.run()
    finally:
        mending.cancel()
    _check_end(world)
    world.finished = True


def _check_end(world: World) -> None:
    steps = [int(path.name) for path in world.checkpoints.iterdir() if path.name.isdecimal()]
    newest = (max(steps), read_state(world.checkpoints / str(max(steps)))) if steps else None
    consumed = world.checks.finished(newest, world.setting.pace.total_steps)
    world.rows.finished(consumed)


async def rollout(world: World, process: Process) -> None:
    """A rollout worker."""
    worker = RolloutWorker(
        name=process.name,
        identity=RunIdentity("sim", world.setting.rollout.group_size),
        task=_Task(),  # type: ignore[arg-type]
        encoder=_Encoder(),  # type: ignore[arg-type]
        queue=world.queue(process).producer,
        registry=world.registry(process),  # type: ignore[arg-type]
        settings=world.setting.rollout,
        evaluation=EvaluationSettings(),
        pace=world.setting.pace,
        log=lambda event, **fields: world.log(process, event, fields),
        should_stop=lambda: False,
        hold=world.holds.reason,
        vocab_size=VOCAB_SIZE,
        waits=world.waits[process.name],
        open_session=lambda: world.network.session(process),
        rng=random.Random(world.draws.random()),
        scoring=_Inline(),  # type: ignore[arg-type]
        queue_thread=_Inline(),  # type: ignore[arg-type]
        tick_s=LOOK_S,
        renew_every_s=world.setting.claim_lease_s / 4,
    )
    await worker.run()


async def fleet(world: World, process: Process) -> None:
    """The fleet's controller."""

    async def inline(work: Callable[..., Any], *arguments: Any) -> Any:
        process.check()
        return work(*arguments)

    servers: list[SimulatedServer] = []

    def make(name: str, port: int) -> SimulatedServer:
        server = SimulatedServer(
            name,
            settings=world.setting.serving,
            session=world.network.session(process),
            waits=world.waits[process.name],
            draws=world.draws,
            bad_start=lambda: world.odds.bad_start,
            start_engine=lambda name: _start_engine(world, process, name),
        )
        servers.append(server)
        return server

    # The guard ends a controller's servers when the controller is gone, a moment later.
    def end_servers(_: Any) -> None:
        for server in servers:
            world.loop.call_later_for_nobody(world.draws.uniform(0, 0.5), server.end)

    world.loop.when_done(process.ended, end_servers)
    fleet = Fleet(
        world.setting.serving,
        model_dir=Path("/simulated"),
        store=world.store,
        registry=world.registry(process),  # type: ignore[arg-type]
        log_dir=Path("/simulated"),
        keep_versions=world.setting.keep_versions,
        log=lambda event, **fields: world.log(process, event, fields),
        should_stop=lambda: False,
        name="fleet",
        make_replica=make,
        open_session=contextlib.nullcontext,
        run_blocking=inline,
        waits=world.waits[process.name],
        clock=process.wall_clock,
    )
    world.fleet_now = fleet
    await fleet.run()


def _start_engine(world: World, owner: Process, name: str) -> tuple[Process, str]:
    """A server process; it listens at once."""
    own, before = world.servers.get(name, (None, None))
    left = own is owner and before is not None and before.is_alive
    world.violations.require(not left, "server left running", f"another {name} is started, and the first one lives")
    world.ports += 1
    url = f"http://{name}:{world.ports}"
    process = world._new_process(name)
    world.servers[name] = owner, process
    weights = ArithmeticWeights()
    worker = Worker(
        weights,
        root=world.weights,
        clock=world.loop.time,
        start_reading=lambda read: process.spawn(_later(world.draws.uniform(0, 0.1), read)),  # type: ignore[arg-type]
    )
    if world.draws.random() < world.odds.bad_load:
        weights.flips, worker.breaks = world.draws.choice([(1, 0), (0, 1), (2, 0)])
    incarnation = f"{name}#{world.ports}"
    engine = Engine(
        worker,
        EngineSettings(max_model_len=MAX_MODEL_LEN, token_s=0.03, control_s=0.02),
        draws=random.Random(world.draws.random()),
        on_sample=lambda version, count: world.checks.sampled(incarnation, version, weights.identity),
        on_name=lambda version: world.checks.named(url, version),
    )
    world.network.engines[url] = process, engine
    return process, url


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
