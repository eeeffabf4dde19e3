"""Runs seeds: one simulated run each, which must keep every invariant and, once faults are over, finish in time."""

from __future__ import annotations

import asyncio
import functools
import gc
import random
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from unittest import mock

from tools.testing.simulate import parts
from tools.testing.simulate.blocking import sleep
from tools.testing.simulate.faults import Monkey
from tools.testing.simulate.learner import without_computing
from tools.testing.simulate.loop import EPOCH_S, StalledError
from tools.testing.simulate.setting import LOOK_S, ORDERS_S
from tools.testing.simulate.world import World

Mode = Literal["safety", "liveness"]

#: seconds of virtual time: how long a safety run goes on, when a liveness run is healed, and what it has from then on
_SAFETY_S = 6.0
_HEALED_S = 4.5
_FINISH_WITHIN_S = 40.0
_LOOK_S = 0.25


@dataclass(frozen=True)
class Outcome:
    """How one seed ended.

    Attributes:
      violation: what did not hold, or "".
      virtual_s: when it ended.
      trace_hash: of everything that happened.
      counts: faults and ends by kind.
      trained: trainings, also those that a crash undid.
    """

    seed: int
    mode: Mode
    violation: str
    finished: bool
    virtual_s: float
    trace_hash: str
    trained: int
    counts: dict[str, int] = field(default_factory=dict)


def simulate(seed: int, mode: Mode = "safety", *, show: bool = False, faults: bool = True) -> Outcome:
    """One run.

    Args:
      faults: False gives a run in which nothing goes wrong.
    """
    with tempfile.TemporaryDirectory(prefix="weir-simulate-", dir=_fast_folder()) as folder:
        world = World(seed, folder=Path(folder), show=show)
        with _virtual_time(world):
            try:
                world.loop.run_until_complete(world.loop.create_task(_drive(world, mode, faults=faults)))
            except StalledError as error:
                world.violations.note("standstill", str(error))
            virtual_s = world.loop.time()
            world.abandon()
    return Outcome(
        seed=seed,
        mode=mode,
        violation=str(world.violations.first or ""),
        finished=world.finished,
        virtual_s=virtual_s,
        trace_hash=world.trace_hash,
        trained=world.checks.trained,
        counts=dict(world.counts),
    )


def run_job(job: tuple[int, Mode]) -> Outcome:
    """`simulate`, for pools of processes."""
    _freeze()
    return simulate(*job)


@functools.cache
def _freeze() -> None:
    """What was imported stays: the collector need not look through it after each run."""
    gc.collect()
    gc.freeze()


async def _drive(world: World, mode: Mode, *, faults: bool) -> None:
    monkey = Monkey(world, random.Random(world.draws.random()))
    world.supervise("fleet", functools.partial(parts.fleet, world))
    world.supervise("learner", functools.partial(parts.learner, world))
    for name in world.setting.workers:
        world.supervise(name, functools.partial(parts.rollout, world))
    work = None
    if faults:
        monkey.begin()
        work = asyncio.create_task(monkey.run())
    end_s = _SAFETY_S if mode == "safety" else _HEALED_S + _FINISH_WITHIN_S
    while not world.finished and world.loop.time() < end_s:
        await asyncio.sleep(_LOOK_S)
        world.look()
        if world.violations.first is not None:
            return
        if mode == "liveness" and work is not None and world.loop.time() >= _HEALED_S:
            work.cancel()
            work = None
            world.trace("healed")
            monkey.heal()
    if mode == "liveness" and not world.finished:
        world.violations.note("not finished", f"{_FINISH_WITHIN_S:g} s after all faults were over")


@contextmanager
def _virtual_time(world: World) -> Iterator[None]:
    """Clocks that code reads directly show the simulation's time; a sleep in earnest is a mistake."""

    def wall() -> float:
        return EPOCH_S + world.loop.time()

    collecting = gc.isenabled()
    gc.disable()  # dead tasks are unwound at the end, not whenever memory happens to be looked through
    uuids = random.Random(0)
    try:
        with (
            mock.patch.multiple(time, time=wall, monotonic=world.loop.time, perf_counter=world.loop.time, sleep=sleep),
            mock.patch.multiple("serving_bridge.fleet.controller", _TICK_S=LOOK_S, _ORDERS_S=ORDERS_S),
            # Nobody asks for all tasks, and the weak references would be a part in thirty of a run's time.
            mock.patch.object(asyncio.tasks._all_tasks, "add", _uncounted),  # type: ignore[attr-defined]
            mock.patch("serving_bridge.rollout.worker.Dispatcher", world.dispatcher),
            mock.patch("learner_jax.runtime.crash_points._trap", return_value=world),
            world.disk.watched(),
            without_computing(world.in_background),
            mock.patch("uuid.uuid4", side_effect=lambda: uuid.UUID(int=uuids.getrandbits(128))),
        ):
            yield
    finally:
        if collecting:
            gc.enable()


def _uncounted(task: object) -> None:
    """In place of a set's `add`."""


def _fast_folder() -> str | None:
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() else None
