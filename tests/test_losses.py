"""Losses against float64 NumPy written from the papers, special cases and finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax import losses

RNG = np.random.default_rng(0)
LOGPROBS = -RNG.random(64) * 3
BEHAVIOR = LOGPROBS + RNG.normal(size=64) * 0.3
ADVANTAGES = RNG.normal(size=64)


def clipped_surrogate_oracle(
    logprobs: np.ndarray, behavior: np.ndarray, advantages: np.ndarray, low: float, high: float
):
    """PPO, equation 7, token by token."""
    out = []
    for p, b, a in zip(logprobs, behavior, advantages, strict=True):
        ratio = np.exp(p - b)
        out.append(-min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a))
    return np.array(out)


@pytest.mark.parametrize("jit", [False, True])
def test_clipped_surrogate(jit: bool) -> None:
    def function(p: jax.Array) -> jax.Array:
        return losses.clipped_surrogate(p, jnp.array(BEHAVIOR), jnp.array(ADVANTAGES), clip_low=0.2, clip_high=0.3)

    got = (jax.jit(function) if jit else function)(jnp.array(LOGPROBS))
    np.testing.assert_allclose(got, clipped_surrogate_oracle(LOGPROBS, BEHAVIOR, ADVANTAGES, 0.2, 0.3), rtol=2e-6)


def test_clipped_surrogate_gradient_by_finite_differences() -> None:
    def oracle(p: np.ndarray) -> float:
        return clipped_surrogate_oracle(p, BEHAVIOR, ADVANTAGES, 0.2, 0.3).sum()

    def function(p: jax.Array) -> jax.Array:
        return losses.clipped_surrogate(
            p, jnp.array(BEHAVIOR), jnp.array(ADVANTAGES), clip_low=0.2, clip_high=0.3
        ).sum()

    got = np.asarray(jax.grad(function)(jnp.array(LOGPROBS)))
    eps = 1e-6
    for i in range(len(LOGPROBS)):
        shift = np.eye(len(LOGPROBS))[i] * eps
        expected = (oracle(LOGPROBS + shift) - oracle(LOGPROBS - shift)) / (2 * eps)
        assert got[i] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_is_clipped_is_where_the_gradient_vanishes() -> None:
    arguments = (jnp.array(BEHAVIOR), jnp.array(ADVANTAGES))
    bounds = {"clip_low": 0.2, "clip_high": 0.3}
    gradient = jax.grad(lambda p: losses.clipped_surrogate(p, *arguments, **bounds).sum())(jnp.array(LOGPROBS))
    clipped = np.asarray(losses.is_clipped(jnp.array(LOGPROBS), *arguments, **bounds))
    assert 0 < clipped.sum() < len(clipped)
    np.testing.assert_array_equal(clipped == 1, np.asarray(gradient) == 0)


def test_infinite_clip_on_policy_is_reinforce() -> None:
    p = jnp.array(LOGPROBS)
    gradient = jax.grad(
        lambda q: losses.clipped_surrogate(q, p, jnp.array(ADVANTAGES), clip_low=0.999999, clip_high=1e9).sum()
    )(p)
    np.testing.assert_allclose(gradient, -ADVANTAGES, rtol=1e-6)


def test_k3_oracle_sign_and_gradient() -> None:
    reference = LOGPROBS + RNG.normal(size=64) * 0.5
    difference = reference - LOGPROBS
    got = losses.k3_kl(jnp.array(LOGPROBS), jnp.array(reference))
    np.testing.assert_allclose(got, np.exp(difference) - 1 - difference, rtol=3e-5, atol=1e-7)
    assert (np.asarray(got) >= 0).all()
    assert losses.k3_kl(jnp.array([-1.5]), jnp.array([-1.5]))[0] == 0
    gradient = jax.grad(lambda p: losses.k3_kl(p, jnp.array(reference)).sum())(jnp.array(LOGPROBS))
    np.testing.assert_allclose(gradient, 1 - np.exp(difference), rtol=1e-4, atol=1e-6)


def test_k3_is_unbiased_for_the_exact_kl() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    expected = (p * np.log(p / q)).sum()
    k3 = np.asarray(losses.k3_kl(jnp.log(p), jnp.log(q)), np.float64)
    assert (p * k3).sum() == pytest.approx(expected, rel=1e-5)


def test_group_advantages() -> None:
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(
        losses.group_advantages(rewards, normalize=True), (rewards - 0.6) / (np.sqrt(0.24) + 1e-4), rtol=1e-12
    )
    np.testing.assert_allclose(losses.group_advantages(rewards, normalize=False), rewards - 0.6)
    np.testing.assert_array_equal(losses.group_advantages(np.full(4, 0.3), normalize=True), np.zeros(4))


def test_loss_weights_by_hand() -> None:
    mask = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(
        losses.loss_weights(mask, reduction="sequence_mean"), [[0, 0.25, 0.25, 0], [0, 0.5, 0, 0], [0] * 4]
    )
    np.testing.assert_allclose(losses.loss_weights(mask, reduction="token_mean"), mask / 3)
    assert not losses.loss_weights(np.zeros((2, 3)), reduction="token_mean").any()
    with pytest.raises(ValueError, match="known: sequence_mean, token_mean"):
        losses.loss_weights(mask, reduction="mean")


def test_masked_sum_ignores_nan_where_masked() -> None:
    values = jnp.array([1.0, jnp.nan, 2.0])
    assert losses.masked_sum(values, jnp.array([1.0, 0.0, 0.5])) == 2.0
