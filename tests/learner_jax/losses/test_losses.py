"""Value, supervised and preference losses and the reductions, against float64 NumPy written from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.losses import terms as losses
from tests.support.finite_differences import gradient

MODES: dict[str, Callable] = {"eager": lambda function: function, "jit": jax.jit}
RNG = np.random.default_rng(0)
VALUES, TARGETS = RNG.normal(size=(2, 64))
OLD_VALUES = VALUES + 0.3 * RNG.normal(size=64)


# Values


def value_loss_oracle(values: np.ndarray, clip: float | None) -> np.ndarray:
    out = []
    for v, target, old in zip(values, TARGETS, OLD_VALUES, strict=True):
        loss = (v - target) ** 2
        if clip is not None:
            loss = max(loss, (min(max(v, old - clip), old + clip) - target) ** 2)
        out.append(loss / 2)
    return np.array(out)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss(mode: str, clip: float | None) -> None:
    function = MODES[mode](partial(losses.value_loss, clip=clip))
    got = function(jnp.array(VALUES), jnp.array(TARGETS), jnp.array(OLD_VALUES))
    np.testing.assert_allclose(got, value_loss_oracle(VALUES, clip), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_gradient_by_finite_differences(clip: float | None) -> None:
    def total(v: jax.Array) -> jax.Array:
        return jnp.sum(losses.value_loss(v, jnp.array(TARGETS), jnp.array(OLD_VALUES), clip=clip))

    expected = gradient(lambda v: value_loss_oracle(v, clip).sum(), VALUES)
    assert (expected == 0).any() == (clip is not None)
    np.testing.assert_allclose(jax.grad(total)(jnp.array(VALUES)), expected, rtol=1e-4, atol=1e-6)


def test_value_clip_wider_than_every_change_changes_nothing() -> None:
    arguments = (jnp.array(VALUES), jnp.array(TARGETS), jnp.array(OLD_VALUES))
    clipped, plain = losses.value_loss(*arguments, clip=10.0), losses.value_loss(*arguments)
    np.testing.assert_allclose(clipped, plain, rtol=1e-5, atol=1e-7)


def test_value_loss_of_huge_targets_is_finite() -> None:
    value, slope = jax.value_and_grad(lambda v: losses.value_loss(v, jnp.array([1e9]), jnp.zeros(1), clip=0.2)[0])(
        jnp.array([-1e9])
    )
    assert float(value) == pytest.approx(2e18, rel=1e-6)
    assert np.isfinite(slope).all()


# Supervised and preference losses


def test_cross_entropy_is_the_negative_log_likelihood() -> None:
    np.testing.assert_array_equal(losses.cross_entropy(jnp.array([-1.5, 0.0])), [1.5, 0.0])


def preference_oracle(margin: float) -> float:
    """-log sigmoid."""
    return -math.log(1 / (1 + math.exp(-margin)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("margin", [-3.0, -0.1, 0.0, 2.0, 8.0])
def test_bradley_terry_and_its_gradient(mode: str, margin: float) -> None:
    function = MODES[mode](jax.value_and_grad(losses.bradley_terry, argnums=(0, 1)))
    value, (by_chosen, by_rejected) = function(jnp.float32(1.0 + margin), jnp.float32(1.0))
    (expected,) = gradient(lambda m: preference_oracle(m[0]), np.array([margin]))
    assert float(value) == pytest.approx(preference_oracle(margin), rel=1e-5)
    assert float(by_chosen) == pytest.approx(expected, rel=1e-4)
    assert float(by_rejected) == pytest.approx(-expected, rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("chosen", "rejected"), [(-4.0, 3.0), (0.5, 0.25), (10.0, -2.0)])
def test_dpo_and_its_gradient(mode: str, chosen: float, rejected: float) -> None:
    function = MODES[mode](jax.value_and_grad(partial(losses.dpo, beta=0.3), argnums=(0, 1)))
    value, slopes = function(jnp.float32(chosen), jnp.float32(rejected))
    expected = gradient(lambda x: preference_oracle(0.3 * (x[0] - x[1])), np.array([chosen, rejected]))
    assert float(value) == pytest.approx(preference_oracle(0.3 * (chosen - rejected)), rel=1e-5)
    np.testing.assert_allclose(slopes, expected, rtol=1e-4)


def test_dpo_of_the_reference_itself_is_log_2() -> None:
    assert float(losses.dpo(jnp.float32(0.0), jnp.float32(0.0), beta=0.1)) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("margin", [50.0, -50.0, 1000.0, -1000.0])
def test_preference_losses_are_finite_whatever_comes(margin: float) -> None:
    for function in (losses.bradley_terry, partial(losses.dpo, beta=1.0)):
        value, slope = jax.value_and_grad(function)(jnp.float32(margin), jnp.float32(0.0))
        # exp(-50) and less is 0 beside 1; the loss of a pair in the wrong order is its margin.
        assert float(value) == pytest.approx(max(-margin, 0.0), abs=1e-20)
        assert float(slope) == pytest.approx(-1.0 if margin < 0 else 0.0, abs=1e-20)


# Reductions

MASK = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sequence_mean", [[0, 1 / 4, 1 / 4, 0], [0, 1 / 2, 0, 0], [0] * 4]),
        ("token_mean", [[0, 1 / 3, 1 / 3, 0], [0, 1 / 3, 0, 0], [0] * 4]),
        ("constant", [[0, 1 / 16, 1 / 16, 0], [0, 1 / 16, 0, 0], [0] * 4]),
    ],
)
def test_loss_weights_by_hand(reduction: str, expected: list[list[float]]) -> None:
    got = losses.loss_weights(MASK, reduction=reduction, constant_tokens=8 if reduction == "constant" else None)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "constant"])
def test_loss_weights_reduce_as_the_papers_do(reduction: str) -> None:
    rng = np.random.default_rng(1)
    mask, token_loss = rng.random((5, 12)) < 0.6, rng.normal(size=(5, 12))
    mask[3] = False
    answers = [token_loss[i][mask[i]] for i in range(5) if mask[i].any()]
    expected = {
        "sequence_mean": np.mean([np.mean(answer) for answer in answers]),
        "token_mean": np.mean(np.concatenate(answers)),
        "constant": np.mean([np.sum(answer) / 20 for answer in answers]),
    }
    constant = 20 if reduction == "constant" else None
    weights = losses.loss_weights(mask, reduction=reduction, constant_tokens=constant)
    assert (weights * token_loss).sum() == pytest.approx(expected[reduction], rel=1e-5)


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "constant"])
def test_nothing_sampled_weighs_nothing(reduction: str) -> None:
    assert not losses.loss_weights(np.zeros((2, 3), bool), reduction=reduction, constant_tokens=8).any()


def test_constant_reduction_asks_for_its_denominator() -> None:
    with pytest.raises(ValueError, match="needs constant_tokens"):
        losses.loss_weights(MASK, reduction="constant")


def test_unknown_reduction_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'mean'; known: sequence_mean, token_mean, constant"):
        losses.loss_weights(MASK, reduction="mean")


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
def test_masked_sum_and_its_gradient_ignore_what_is_masked(poison: float) -> None:
    values, weights = jnp.array([1.0, poison, 2.0]), jnp.array([1.0, 0.0, 0.5])
    value, slope = jax.value_and_grad(losses.masked_sum)(values, weights)
    assert value == 2.0
    np.testing.assert_array_equal(slope, weights)
