"""Parts of a reward that are normalised apart: against the formula in plain Python, and its special cases."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from learner_jax.batches import rl_batch
from learner_jax.batches.sequences import BatchError
from learner_jax.contracts.weights import Trajectory
from learner_jax.losses import Part, decoupled, grpo
from learner_jax.settings.learner import AdvantageSettings, LossSettings
from tests.support.trajectories import make_group

EPS = 1e-4


def by_hand(values: dict[str, list[float]], weights: dict[str, float]) -> list[float]:
    """Sum over parts of w (r - mean) / (std + eps), as the paper writes it, without NumPy."""
    total = [0.0] * len(next(iter(values.values())))
    for name, column in values.items():
        mean = math.fsum(column) / len(column)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in column) / len(column))
        total = [t + weights[name] * (v - mean) / (deviation + EPS) for t, v in zip(total, column, strict=True)]
    return total


def of(values: dict[str, list[float]], **parts: Part) -> np.ndarray:
    return decoupled({name: np.array(column) for name, column in values.items()}, parts)


def test_parts_are_those_of_the_formula() -> None:
    draws = np.random.default_rng(0)
    values = {"right": draws.integers(0, 2, 8).astype(float).tolist(), "style": draws.normal(3, 50, 8).tolist()}
    found = of(values, right=Part(1.0), style=Part(0.25))
    np.testing.assert_allclose(found, by_hand(values, {"right": 1.0, "style": 0.25}), rtol=1e-12)
    assert found.mean() == pytest.approx(0, abs=1e-12)


def test_one_part_is_grpo_and_its_scale_does_not_matter() -> None:
    rewards = [0.0, 1.0, 0.5, 0.0]
    np.testing.assert_array_equal(of({"r": rewards}, r=Part()), grpo(np.array(rewards)))
    scaled = of({"r": [1000 * value for value in rewards]}, r=Part())
    np.testing.assert_allclose(scaled, of({"r": rewards}, r=Part()), rtol=1e-3)


def test_combinations_that_a_sum_confuses_are_told_apart() -> None:
    """Answers (0,0), (0,1), (1,1): in the sum both steps are 1, however rare a part is; apart, the rare one is more."""
    values = {"rare": [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], "usual": [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]}
    apart = of(values, rare=Part(), usual=Part())
    together = grpo(np.array([0.0, 0.0, 0.0, 1.0, 1.0, 2.0]))
    assert apart[5] - apart[3] > 1.3 * (apart[3] - apart[0]) > 0
    assert together[5] - together[3] == pytest.approx(together[3] - together[0])


def test_bounds_hold_before_a_part_is_normalised() -> None:
    values = {"length": [1.0, 2.0, 3.0, 1e6]}
    clipped = of(values, length=Part(clip=(0.0, 3.0)))
    np.testing.assert_allclose(clipped, by_hand({"length": [1.0, 2.0, 3.0, 3.0]}, {"length": 1.0}))


def test_an_answer_behind_a_closed_gate_earns_nothing() -> None:
    values = {"right": [1.0, 1.0, 0.0, 0.0], "safe": [1.0, 0.0, 1.0, -1.0]}
    found = of(values, right=Part(2.0), safe=Part(gate=True))
    np.testing.assert_allclose(found, by_hand({"right": [1.0, 0.0, 0.0, 0.0]}, {"right": 2.0}))


def answers(group_id: str, parts: list[dict[str, float]]) -> list[Trajectory]:
    group = make_group(group_id, size=len(parts), rewards=[sum(part.values()) for part in parts])
    return [dataclasses.replace(t, reward_parts=part) for t, part in zip(group, parts, strict=True)]


def advantages(groups: list[list[Trajectory]], **advantage: Any) -> np.ndarray:
    settings = LossSettings.model_validate({"advantage": advantage})
    batch, _ = rl_batch(groups, settings, sequence_length=16, trained_version=1)
    return np.asarray(batch.advantages)[:, 4]


GROUPS = [
    [{"right": 0.0, "style": 5.0}, {"right": 1.0, "style": 1.0}, {"right": 1.0, "style": 9.0}],
    [{"right": 0.0, "style": -3.0}, {"right": 0.0, "style": 0.0}, {"right": 1.0, "style": 2.0}],
]


def test_a_batch_has_gdpo_s_advantages() -> None:
    """Within groups by part, then over the batch; all answers have as many tokens."""
    groups = [answers(f"run/{i}", parts) for i, parts in enumerate(GROUPS)]
    weights = {"right": 1.0, "style": 0.5}
    sums = [by_hand({name: [answer[name] for answer in parts] for name in weights}, weights) for parts in GROUPS]
    flat = np.array([value for group in sums for value in group])
    expected = (flat - flat.mean()) / (flat.std() + EPS)
    parts = {name: {"weight": weight} for name, weight in weights.items()}
    np.testing.assert_allclose(advantages(groups, estimator="reinforce_pp", parts=parts), expected, rtol=1e-5)
    np.testing.assert_allclose(advantages(groups, estimator="dr_grpo", parts=parts), flat, rtol=1e-5, atol=1e-7)


def test_answers_without_a_verdict_are_in_no_part_s_statistics() -> None:
    parts = [*GROUPS[0], {"right": 0.0, "style": 0.0}]
    group = answers("run/0", parts)
    group[3] = dataclasses.replace(group[3], verdict="error", rewards=np.zeros_like(group[3].rewards), reward_parts={})
    found = advantages([group], estimator="dr_grpo", parts={"right": {}, "style": {}})
    np.testing.assert_allclose(
        found[:3], advantages([group[:3]], estimator="dr_grpo", parts={"right": {}, "style": {}})
    )
    assert found[3] == 0


def test_a_group_whose_parts_differ_is_not_of_zero_variance() -> None:
    group = answers("run/0", [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 1.0}])
    settings = LossSettings.model_validate(
        {"advantage": {"estimator": "dr_grpo", "parts": {"a": {}, "b": {"weight": 0.5}}}}
    )
    _, stats = rl_batch([group], settings, sequence_length=16, trained_version=1)
    assert stats.zero_variance_groups == 0


def test_a_part_that_no_answer_has_is_named() -> None:
    group = answers("run/0", GROUPS[0])
    with pytest.raises(BatchError, match=r"names 'rigth', .* it has 'right', 'style'"):
        advantages([group], estimator="dr_grpo", parts={"rigth": {}})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"estimator": "grpo", "parts": {"a": {}}}, 'estimator = "reinforce_pp"'),
        ({"estimator": "gae", "parts": {"a": {}}}, 'estimator = "reinforce_pp"'),
        ({"estimator": "dr_grpo", "credit": "turn", "parts": {"a": {}}}, "outcome"),
        ({"estimator": "dr_grpo", "parts": {"a": {"gate": True}}}, "gates alone"),
        ({"estimator": "dr_grpo", "parts": {"a": {"clip": [1.0, 1.0]}}}, "low below high"),
        ({"estimator": "dr_grpo", "parts": {"a": {"gate": True, "clip": [0.0, 1.0]}, "b": {}}}, "no clip"),
        ({"estimator": "dr_grpo", "parts": {"a": {"wieght": 1.0}}}, "wieght"),
    ],
)
def test_settings_that_can_t_be_meant_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AdvantageSettings.model_validate(settings)
