"""Supervised training on examples: what is learnt, and that a restart goes on with the same bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from learner_jax.batches import ExampleStream
from learner_jax.checkpoints import Checkpoints, Position
from learner_jax.settings import SupervisedSettings
from learner_jax.settings.learner import LossSettings, OptimizerSettings
from learner_jax.training import Engine, TrainState, fine_tune, fine_tuning_objective
from learner_jax.training.fine_tuning import FineTuningError
from tests.support.composed_losses import params as params
from tests.support.composed_losses import settings
from tests.support.tiny_model import TINY

_LENGTH = 6


def supervised(**given: Any) -> SupervisedSettings:
    fields = {"data": "x.jsonl", "steps": 6, "batch_size": 4, "learning_rate": 1e-2, "save_every": 2, **given}
    return SupervisedSettings(**fields)


def examples() -> list[Any]:
    """The answer repeats the prompt's token; lengths differ."""
    mask = [False, False, True, True, True]
    return [([1, t, t, t, 2][: 4 + t % 2], mask[: 4 + t % 2]) for t in range(4, 20)]


def pairs() -> list[Any]:
    mask = [False, False, True, True]
    return [(([1, t, t, 2], mask), ([1, t, t + 1, 2], mask)) for t in range(4, 20)]


def trained(
    folder: Path, params: Any, asked: SupervisedSettings, data: list[Any], *, stop_after: int | None = None
) -> tuple[TrainState, list[dict[str, Any]], int]:
    """One life: from the newest checkpoint to the end, or to a stop after so many steps."""
    optimizer = OptimizerSettings(learning_rate=asked.learning_rate)
    learner = settings(LossSettings(), microbatch_rows=4, sequence_length=_LENGTH, optimizer=optimizer)
    engine = Engine(learner, TINY, objective=fine_tuning_objective(asked), temperature=1.0, devices=jax.devices()[:1])
    checkpoints = Checkpoints(folder, keep=2)
    state, first = engine.init_state(params, seed=0), 0
    if checkpoints.latest_step() is not None:
        state, position, _ = checkpoints.restore(state)
        first = position.completed_steps
    records: list[dict[str, Any]] = []
    state, done = fine_tune(
        engine,
        state,
        asked,
        start=engine.placed(params),
        examples=ExampleStream(data, batch_size=asked.batch_size, seed=3).since(first),
        first_step=first,
        save=lambda state, step: checkpoints.save(state, Position(step, -1, 0, ())),
        log=lambda event, **fields: records.append({"event": event, **fields}),
        should_stop=lambda: stop_after is not None and len(records) >= stop_after,
    )
    checkpoints.close()
    return state, records, done


@pytest.mark.parametrize(("loss", "data"), [("cross_entropy", examples()), ("dpo", pairs())])
def test_a_restart_goes_on_with_the_same_bits(loss: Any, data: list[Any], tmp_path: Path, params: Any) -> None:
    asked = supervised(loss=loss)
    whole, records, done = trained(tmp_path / "whole", params, asked, data)
    assert (done, [record["step"] for record in records]) == (6, [1, 2, 3, 4, 5, 6])
    _, first, done = trained(tmp_path / "cut", params, asked, data, stop_after=3)
    assert done == 3
    resumed, rest, done = trained(tmp_path / "cut", params, asked, data)
    assert (done, [record["step"] for record in rest]) == (6, [4, 5, 6])
    assert [record["loss"] for record in [*first, *rest]] == [record["loss"] for record in records]
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    if loss == "dpo":
        assert records[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)  # the policy is still the reference
        assert records[0]["margin"] == pytest.approx(0.0, abs=1e-6)
    assert records[-1]["loss"] < records[0]["loss"]


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path, params: Any) -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    with pytest.raises(FineTuningError, match="the supervised loss is nan at step 1: lower supervised.learning_rate"):
        trained(tmp_path / "broken", broken, supervised(), examples())
