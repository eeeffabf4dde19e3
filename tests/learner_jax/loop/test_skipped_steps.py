"""Steps that leave the parameters as they are: how many may follow each other, and what older tokens then prove."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.loop.learner import TrainingError
from learner_jax.models import init_parameters
from learner_jax.settings.learner import GroupSettings, LossSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.learner_runs import SETTINGS, fill, run
from tests.support.tiny_model import TINY
from tests.support.trajectories import make_group


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.tree.map(np.asarray, init_parameters(TINY, jax.random.key(3)))


def engine_that_fails_at(versions: list[int], *, honest: bool = True, loss: LossSettings = SETTINGS.loss) -> Engine:
    """Its loss is not finite where the current version is one of these; step s is trained from version s.

    Args:
      honest: whether behaviour log-probs are the sampler's; else they are the learner's own, computed anew.
    """
    sound = objective.reinforcement(loss)

    def share(stats: Any, batch: Any, scalars: Any) -> Any:
        if not honest:
            batch = dataclasses.replace(batch, behavior_logprobs=jax.lax.stop_gradient(stats.logprobs))
        value, metrics = sound(stats, batch, scalars)
        fails = jnp.isin(scalars.current_version, jnp.array(versions or [-1]))
        return value * jnp.where(fails, jnp.nan, 1.0), metrics

    settings = SETTINGS.model_copy(update={"groups_per_step": 4, "microbatch_rows": 8, "steps": 6, "loss": loss})
    return Engine(settings, TINY, objective=objective.Objective(share), temperature=1.0, devices=jax.devices()[:1])


def test_steps_that_are_not_finite_end_a_run_only_in_a_row(params: Any, tmp_path: Path) -> None:
    fill(tmp_path, 24)
    outcome, log = run(engine_that_fails_at([1, 2, 4, 5]), params, tmp_path)
    assert [record["skipped"] for record in log.steps()] == [1, 1, 0, 1, 1, 0]
    assert outcome.reason == "finished"


@pytest.mark.parametrize("why", ["not finite", "nothing to learn"])
def test_older_tokens_prove_nothing_while_the_weights_are_the_same(why: str, params: Any, tmp_path: Path) -> None:
    """Their ratio is rightly 1 until a step has changed the weights; from then on it is not."""
    loss = LossSettings(groups=GroupSettings(zero_variance="drop"))
    engine = engine_that_fails_at([1] if why == "not finite" else [], honest=False, loss=loss)
    queue = TrajectoryQueue(tmp_path / "state.db")
    for index in range(12):
        rewards = [1.0, 1.0] if why == "nothing to learn" and index < 4 else [0.0, 1.0]
        queue.producer.put([(index, make_group(f"run/{index}", seed=index, rewards=rewards))])
    queue.close()
    with pytest.raises(TrainingError, match=r"step 3: 16 tokens of versions older than 3 .* exactly 1"):
        run(engine, params, tmp_path)
