"""A learner's run without faults on a tiny model, for tests that compare others with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from learner_jax.models import init_parameters
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.learner_runs import SETTINGS, fill, run
from tests.support.tiny_model import TINY


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(
        SETTINGS, TINY, objective=objective.reinforcement(SETTINGS.loss), temperature=1.0, devices=jax.devices()[:1]
    )


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.tree.map(np.asarray, init_parameters(TINY, jax.random.key(3)))


@pytest.fixture(scope="module")
def whole(engine: Engine, params: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    directory = tmp_path_factory.mktemp("whole")
    fill(directory, 12)
    run(engine, params, directory)
    return directory


def num_acknowledged(directory: Path) -> int:
    """Groups that the queue of a run has forgotten as trained on."""
    queue = TrajectoryQueue(directory / "state.db")
    try:
        return queue.admin.progress().num_acknowledged
    finally:
        queue.close()
