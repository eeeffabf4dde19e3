"""A supervised start: which examples it learns from, when it measures, and when it ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from learner_jax.batches import Batch, Example
from learner_jax.settings import WarmStartSettings
from learner_jax.training.supervised import WarmStartError, warm_start


class Engine:
    """Learns nothing; its answers to validation problems are right as often as `skill` says, one number a measurement.

    Attributes:
      learned: first tokens of the examples of each step.
      measured: steps after which the skill was measured, and the problems that it was measured on.
    """

    def __init__(self, skill: list[float], losses: dict[int, float] | None = None) -> None:
        self.settings = SimpleNamespace(sequence_length=5)
        self.statistics = self
        self.learned: list[list[int]] = []
        self.measured: list[tuple[int, list[int]]] = []
        self._skill, self._losses = skill, losses or {}

    def step(self, state: Any, batch: Batch, *, current_version: int) -> tuple[Any, dict[str, Any]]:
        assert current_version == -1
        self.learned.append(np.asarray(batch.tokens)[:, 0].tolist())
        number = len(self.learned)
        return SimpleNamespace(params=number), {"loss": np.float32(self._losses.get(number, 1 / number))}

    def all_correct(self, params: Any, tokens: np.ndarray, mask: np.ndarray, lengths: Any) -> np.ndarray:
        assert params == len(self.learned), "the parameters of after the step"
        assert lengths.tokens.tolist() == [3] * len(tokens)
        np.testing.assert_array_equal(mask, [[False, True, True, False, False]] * len(tokens))
        self.measured.append((len(self.learned), tokens[:, 0].tolist()))
        right = round(self._skill[len(self.measured) - 1] * len(tokens))
        return np.arange(len(tokens)) < right


def example(first: int) -> Example:
    return [first, 7, 8], [False, True, True]


def started(engine: Engine, **changed: Any) -> tuple[Any, float, list[dict[str, Any]]]:
    settings = {"target_accuracy": 0.5, "max_steps": 9, "batch_size": 2, "learning_rate": 1e-3}
    settings |= {"evaluate_every": 3, "num_validation": 4} | changed
    logged: list[dict[str, Any]] = []
    typed: Any = engine
    state, accuracy = warm_start(
        typed,
        SimpleNamespace(params=0),  # type: ignore[arg-type]
        WarmStartSettings.model_validate(settings),
        train_example=lambda index: example(100 + index),
        validation_example=lambda index: example(50 + index),
        log=lambda event, **fields: logged.append({"event": event} | fields),
    )
    return state, accuracy, logged


def test_it_ends_with_the_measurement_that_reaches_the_target() -> None:
    engine = Engine([0.25, 0.5])
    state, accuracy, logged = started(engine)
    assert (state.params, accuracy) == (6, 0.5)
    assert engine.learned == [[100 + 2 * step, 101 + 2 * step] for step in range(6)]
    assert engine.measured == [(step, [50, 51, 52, 53]) for step in (3, 6)]
    assert [(record["event"], record["step"], record["accuracy"]) for record in logged] == [
        ("warm_start", 1, None),
        ("warm_start", 3, 0.25),
        ("warm_start", 6, 0.5),
    ]
    assert [record["loss"] for record in logged] == pytest.approx([1, 1 / 3, 1 / 6])
    assert all(0 <= record["step_s"] < 60 for record in logged)


def test_the_last_step_is_measured_and_too_little_skill_is_an_error() -> None:
    engine = Engine([0.0, 0.0, 0.25])
    with pytest.raises(
        WarmStartError, match=r"after 8 supervised steps greedy accuracy is 0\.25, expected 0\.5: raise"
    ):
        started(engine, max_steps=8)
    assert [step for step, _ in engine.measured] == [3, 6, 8]
    assert len(engine.learned) == 8


def test_the_last_step_may_reach_the_target() -> None:
    state, accuracy, _ = started(Engine([0.0, 0.75]), max_steps=4)
    assert (state.params, accuracy) == (4, 0.75)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_told_of_before_it_is_measured(loss: float) -> None:
    engine = Engine([1.0], {3: loss})
    with pytest.raises(
        WarmStartError, match=rf"the supervised loss is {loss} at step 3: lower warm_start.learning_rate"
    ):
        started(engine)
    assert engine.measured == []
