"""Weights for data of another policy, against float64 NumPy loops and the definitions of each rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.losses import corrections
from learner_jax.losses.corrections import mismatch_weights

MODES: dict[str, Callable] = {"eager": lambda function: function, "jit": jax.jit}
RNG = np.random.default_rng(0)
LOG_RATIOS = 0.6 * RNG.normal(size=(6, 32))
MASK = RNG.random((6, 32)) < 0.8


def mismatch_oracle(
    log_ratios: np.ndarray,
    mask: np.ndarray,
    *,
    truncation: float | None = None,
    band: tuple[float, float] | None = None,
    sequence_band: tuple[float, float] | None = None,
    veto: float | None = None,
) -> np.ndarray:
    """One answer; each rule as its paper words it."""
    ratios = [np.exp(x) for x, m in zip(log_ratios, mask, strict=True) if m]
    if sequence_band is not None:
        geometric_mean = np.prod(ratios) ** (1 / len(ratios))
        if not sequence_band[0] <= geometric_mean <= sequence_band[1]:
            return np.zeros(len(mask))
    if veto is not None and min(ratios) < veto:
        return np.zeros(len(mask))
    out = np.zeros(len(mask))
    for t in range(len(mask)):
        ratio = np.exp(log_ratios[t])
        if mask[t] and (band is None or band[0] <= ratio <= band[1]):
            out[t] = 1.0 if truncation is None else min(ratio, truncation)
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"truncation": 1.5},
        {"band": (0.5, 2.0)},
        {"truncation": 5.0, "band": (0.5, 5.0)},
        {"sequence_band": (0.9, 1.1)},
        {"veto": 0.3},
        {"truncation": 2.0, "band": (0.4, 3.0), "sequence_band": (0.9, 1.1), "veto": 0.25},
    ],
    ids=str,
)
def test_mismatch_weights(mode: str, rules: dict[str, Any]) -> None:
    got = MODES[mode](jax.vmap(partial(mismatch_weights, **rules)))(jnp.array(LOG_RATIOS), jnp.array(MASK))
    expected = np.stack([mismatch_oracle(x, m, **rules) for x, m in zip(LOG_RATIOS, MASK, strict=True)])
    answers = (expected > 0).any(axis=1)
    # Rules for whole answers must keep some and mask some, or they are not tested.
    assert answers.all() or 0 < answers.sum() < len(answers)
    assert answers.all() != ("veto" in rules or "sequence_band" in rules)
    np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("rules", [{}, {"band": (0.5, 2.0)}, {"sequence_band": (0.5, 2.0)}, {"veto": 0.1}], ids=str)
def test_a_sampler_that_agrees_has_weight_one(rules: dict[str, Any]) -> None:
    mask = jnp.array(MASK[0])
    np.testing.assert_array_equal(mismatch_weights(jnp.zeros(32), mask, truncation=1.0, **rules), mask)


@pytest.mark.parametrize("rules", [{"truncation": 2.0}, {"sequence_band": (0.5, 2.0)}, {"veto": 0.1}], ids=str)
def test_what_is_masked_has_no_weight_and_no_say(rules: dict[str, Any]) -> None:
    mask, other = MASK[0], np.where(MASK[0], 0.1, np.nan)
    got = mismatch_weights(jnp.array(other), jnp.array(mask), **rules)
    np.testing.assert_allclose(got, mismatch_oracle(np.full(32, 0.1), mask, **rules), rtol=2e-6)


def test_a_band_masks_tokens_and_a_veto_answers() -> None:
    log_ratios, mask = jnp.log(jnp.array([1.0, 0.01, 1.0])), jnp.ones(3, bool)
    np.testing.assert_array_equal(mismatch_weights(log_ratios, mask, band=(0.5, 2.0)), [1, 0, 1])
    np.testing.assert_array_equal(mismatch_weights(log_ratios, mask, veto=0.05), [0, 0, 0])
    np.testing.assert_array_equal(mismatch_weights(log_ratios, mask, veto=0.005), [1, 1, 1])


def test_a_sequence_band_is_of_the_geometric_mean() -> None:
    # The product is 16, the arithmetic mean 2.5, the geometric mean 2.
    log_ratios, mask = jnp.log(jnp.array([4.0, 1.0, 4.0, 1.0])), jnp.ones(4, bool)
    np.testing.assert_array_equal(mismatch_weights(log_ratios, mask, sequence_band=(0.5, 2.2)), np.ones(4))
    np.testing.assert_array_equal(mismatch_weights(log_ratios, mask, sequence_band=(0.5, 1.9)), np.zeros(4))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cap", [0.5, 2.0, np.inf])
def test_staleness_weights(mode: str, cap: float) -> None:
    got = MODES[mode](partial(corrections.staleness_weights, cap=cap))(jnp.array(LOG_RATIOS[0]))
    np.testing.assert_allclose(got, [min(np.exp(x), cap) for x in LOG_RATIOS[0]], rtol=2e-6)


def test_weights_carry_no_gradient() -> None:
    def total(x: jax.Array) -> jax.Array:
        mismatch = mismatch_weights(x, jnp.ones(32, bool), truncation=2.0, band=(0.1, 5.0))
        return jnp.sum(mismatch) + jnp.sum(corrections.staleness_weights(x, cap=2.0))

    np.testing.assert_array_equal(jax.grad(total)(jnp.array(LOG_RATIOS[0])), 0.0)


@pytest.mark.parametrize("log_ratio", [50.0, -50.0, 1000.0, -1000.0])
@pytest.mark.parametrize("sampled", [0, 1, 4])
def test_weights_are_finite_whatever_comes(log_ratio: float, sampled: int) -> None:
    mask, log_ratios = jnp.arange(4) < sampled, jnp.full(4, log_ratio)
    bounds = {"band": (0.0, np.inf), "sequence_band": (0.0, np.inf), "veto": 1e-9}
    got = mismatch_weights(log_ratios, mask, truncation=2.0, **bounds)
    np.testing.assert_allclose(got, np.where(mask, np.exp(max(log_ratio, -20.0)) if log_ratio < 0 else 2.0, 0.0))
    assert np.isfinite(corrections.staleness_weights(log_ratios, cap=np.inf)).all()


# Effective sample size


def share_of(weights: np.ndarray) -> float:
    w = jnp.array(weights, jnp.float32)
    return float(corrections.effective_sample_share(jnp.sum(w), jnp.sum(w**2), jnp.array(len(weights))))


def test_effective_sample_share_is_one_over_one_plus_the_squared_variation() -> None:
    """Kong's own form: n / (1 + variance of the weights / their squared mean)."""
    weights = np.exp(LOG_RATIOS[0])
    assert share_of(weights) == pytest.approx(1 / (1 + weights.var() / weights.mean() ** 2), rel=1e-5)


def test_effective_sample_share_of_equal_weights_is_one() -> None:
    assert share_of(np.full(17, 3.5)) == pytest.approx(1.0, rel=1e-6)


def test_effective_sample_share_of_a_single_weight_is_one_in_n() -> None:
    assert share_of(np.eye(17)[3] * 1e9) == pytest.approx(1 / 17, rel=1e-6)


@pytest.mark.parametrize("weight", [np.exp(-20.0), np.exp(20.0)])
def test_effective_sample_share_of_extreme_weights(weight: float) -> None:
    assert share_of(np.full(1024, weight)) == pytest.approx(1.0, rel=1e-5)


def test_effective_sample_share_without_samples_is_one() -> None:
    assert share_of(np.zeros(0)) == 1.0
