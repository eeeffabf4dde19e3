"""Runs of the learner's loop on a real queue, weight store and Orbax, in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from learner_jax.checkpoints.checkpoints import Checkpoints, restore_parameters
from learner_jax.contracts import CheckpointCopies
from learner_jax.loop.anew import Anew
from learner_jax.loop.learner import Learner
from learner_jax.settings.learner import (
    CheckpointSettings,
    KLSettings,
    LearnerSettings,
    LossSettings,
    OptimizerSettings,
)
from learner_jax.training.engine import Engine
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.support.trajectories import make_group


class Crash(Exception):
    """Stands for kill -9 at a chosen point."""


class Records(list[dict[str, Any]]):
    """Collects what the loop logs; may crash at a chosen event."""

    def __init__(self, crash_at: Callable[[dict[str, Any]], bool] = lambda _: False) -> None:
        super().__init__()
        self._crash_at = crash_at

    def __call__(self, event: str, **fields: Any) -> None:
        self.append({"event": event, **fields})
        if self._crash_at(self[-1]):
            raise Crash

    def steps(self) -> list[dict[str, Any]]:
        return [record for record in self if record["event"] == "step"]


SETTINGS = LearnerSettings(
    steps=6,
    groups_per_step=2,
    sequence_length=8,
    microbatch_rows=4,
    max_wait_s=60.0,
    optimizer=OptimizerSettings(learning_rate=1e-2),
    loss=LossSettings(kl=KLSettings(coefficient=0.01)),
    checkpoint=CheckpointSettings(every=2, keep=2),
)


def run(
    engine: Engine,
    params: Any,
    directory: Path,
    *,
    log: Records | None = None,
    max_staleness: int = 100,
    should_stop: Callable[[], bool] = lambda: False,
    hold: Callable[[], str | None] | None = None,
    anew: Anew | None = None,
    copies: CheckpointCopies | None = None,
    weights: Path | None = None,
    queue_folder: Path | None = None,
) -> tuple[Any, Records]:
    log = Records() if log is None else log
    checkpoints = Checkpoints(directory / "checkpoints", keep=2, copies=copies, log=None if copies is None else log)
    queue = TrajectoryQueue((queue_folder or directory) / "state.db")
    try:
        outcome = Learner(
            engine,
            params,
            seed=0,
            source=queue.consumer,
            publisher=VersionWriter(WeightStore(weights or directory / "weights", "test")),
            checkpoints=checkpoints,
            golden_prompts=[[1, 2, 3, 4]],
            max_staleness=max_staleness,
            log=log,
            should_stop=should_stop,
            hold=hold,
            anew=anew,
        ).run()
    finally:
        checkpoints.close()
        queue.close()
    return outcome, log


def fill(
    directory: Path, count: int, *, version: int = 1, vocabulary: int = 32, tokenizer: str = "", run_name: str = "run"
) -> None:
    queue = TrajectoryQueue(directory / "state.db")
    for i in range(count):
        group = make_group(f"{run_name}/{i}", seed=i, version=version, vocabulary=vocabulary, rewards=[0.0, 1.0])
        queue.producer.put([(i, [dataclasses.replace(trajectory, tokenizer=tokenizer) for trajectory in group])])
    queue.close()


def final_parameters(directory: Path) -> dict[Any, np.ndarray]:
    return flatten_dict(restore_parameters(directory / "checkpoints"))


def assert_same_parameters(directory: Path, expected: Path) -> None:
    """Of the last checkpoints of two runs, bit by bit."""
    got = final_parameters(directory)
    for path, value in final_parameters(expected).items():
        np.testing.assert_array_equal(got[path], value, err_msg=f"{directory} {path}")
