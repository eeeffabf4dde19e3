"""Losses on pairs of a chosen and a rejected answer."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from learner_jax.batches.sequences import BatchError
from learner_jax.batches.supervised import preference_batch
from learner_jax.settings.learner import (
    LossSettings,
    OptimizerSettings,
    ValueSettings,
)
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from learner_jax.training.objective import Objective
from tests.support.composed_losses import (
    VTRACE,
    made_up,
    scalars,
    settings,
)
from tests.support.composed_losses import params as params
from tests.support.tiny_model import TINY


def pairs() -> list[tuple[Any, Any]]:
    """The chosen answer repeats the prompt's token, the rejected one does not."""
    rng = np.random.default_rng(0)
    made = []
    for token in rng.integers(4, 30, 8).tolist():
        mask = [False, False, True, True]
        made.append((([1, token, token, 2], mask), ([1, token, token + 1, 2], mask)))
    return made


def preference_engine(chosen: Objective, kind: str) -> Engine:
    loss = LossSettings(**VTRACE | {"value": ValueSettings(model=kind)}) if kind != "none" else LossSettings()  # type: ignore[arg-type]
    changed = settings(loss, microbatch_rows=4, sequence_length=6, optimizer=OptimizerSettings(learning_rate=5e-3))
    return Engine(changed, TINY, objective=chosen, temperature=1.0, devices=jax.devices()[:1])


def test_dpo_learns_to_prefer_the_chosen_answers(params: Any) -> None:
    engine = preference_engine(objective.direct_preference(beta=0.5), "none")
    state = engine.init_state(params, seed=0)
    batch = preference_batch(
        pairs(), sequence_length=6, reference=lambda rows: engine.statistics.logprobs(state.params, rows.tokens)
    )
    state, metrics = engine.step(state, batch, current_version=0)
    assert float(metrics["loss"]) == pytest.approx(np.log(2), rel=1e-5)  # policy = reference
    for _ in range(30):
        state, metrics = engine.step(state, batch, current_version=0)
    assert float(metrics["preference_accuracy"]) == pytest.approx(1.0)
    assert float(metrics["loss"]) < 0.1


def test_a_reward_model_learns_to_score_the_chosen_answers_higher(params: Any) -> None:
    engine = preference_engine(objective.bradley_terry, "shared")
    state = engine.init_state(params, seed=0)
    batch = preference_batch(pairs(), sequence_length=6)
    state, metrics = engine.step(state, batch, current_version=0)
    assert float(metrics["loss"]) == pytest.approx(np.log(2), rel=1e-5)  # every score is 0
    for _ in range(40):
        state, metrics = engine.step(state, batch, current_version=0)
    assert float(metrics["preference_accuracy"]) == pytest.approx(1.0)
    assert float(metrics["loss"]) < 0.1


def test_dpo_against_numpy() -> None:
    stats, batch, a = made_up()
    loss, metrics = objective.direct_preference(beta=0.3)(stats, batch, scalars())
    ratio = ((a["current"] - a["reference"]) * a["mask"]).sum(axis=1)
    margins = 0.3 * (ratio[0::2] - ratio[1::2])
    assert float(loss) == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-5)
    assert float(metrics["margin"]) == pytest.approx(margins.mean(), rel=1e-5)


def test_a_pair_without_an_answer_is_refused() -> None:
    chosen, _ = pairs()[0]
    with pytest.raises(BatchError, match=r"rejected answer of pair 0 has no token"):
        preference_batch([(chosen, ([1, 2], [False, False]))], sequence_length=6)
