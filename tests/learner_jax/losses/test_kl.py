"""KL estimators: values, their table of gradients by exact float64 expectations, and the coefficient's control."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.losses import kl
from learner_jax.losses.policy import importance_ratios, policy_gradient
from tests.support.finite_differences import gradient

MODES: dict[str, Callable] = {"eager": lambda function: function, "jit": jax.jit}
ORACLES: dict[str, Callable[[float, float], float]] = {
    "k1": lambda pi, q: math.log(pi / q),
    "k2": lambda pi, q: math.log(pi / q) ** 2 / 2,
    "k3": lambda pi, q: q / pi - 1 - math.log(q / pi),
}
RNG = np.random.default_rng(0)
LOGPROBS = -RNG.random(64) * 3
REFERENCE = LOGPROBS + 0.5 * RNG.normal(size=64)

#: Logits of the current, the reference and the behaviour policy over 6 actions.
LOGITS, REFERENCE_LOGITS, BEHAVIOR_LOGITS = RNG.normal(size=(3, 6))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


Q, MU = softmax(REFERENCE_LOGITS), softmax(BEHAVIOR_LOGITS)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


REVERSE = gradient(lambda z: divergence(softmax(z), Q), LOGITS)
FORWARD = gradient(lambda z: divergence(Q, softmax(z)), LOGITS)


def per_token(estimator: str, logprobs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.array([ORACLES[estimator](math.exp(p), math.exp(q)) for p, q in zip(logprobs, reference, strict=True)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("estimator", kl.ESTIMATORS)
def test_estimator(mode: str, estimator: str) -> None:
    got = MODES[mode](kl.ESTIMATORS[estimator])(jnp.array(LOGPROBS), jnp.array(REFERENCE))
    # k3 is a difference of numbers near the log ratio, hence the absolute part.
    np.testing.assert_allclose(got, per_token(estimator, LOGPROBS, REFERENCE), rtol=3e-5, atol=3e-7)


@pytest.mark.parametrize("estimator", kl.ESTIMATORS)
def test_gradient_of_one_token_by_finite_differences(estimator: str) -> None:
    got = jax.grad(lambda p: jnp.sum(kl.ESTIMATORS[estimator](p, jnp.array(REFERENCE))))(jnp.array(LOGPROBS))
    expected = gradient(lambda p: per_token(estimator, p, REFERENCE).sum(), LOGPROBS)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_estimator_is_never_negative(estimator: str) -> None:
    difference = jnp.concatenate([jnp.linspace(-25.0, 25.0, 101), jnp.array([0.0, 1e-4, -1e-4, 1e3, -1e3])])
    values = np.asarray(kl.ESTIMATORS[estimator](difference, jnp.zeros_like(difference)))
    assert (values >= 0).all()
    assert values[50] == 0


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expectation_is_the_exact_kl(estimator: str) -> None:
    p = softmax(LOGITS)
    values = np.asarray(kl.ESTIMATORS[estimator](jnp.log(p), jnp.log(Q)), np.float64)
    assert (p * values).sum() == pytest.approx(divergence(p, Q), rel=1e-5)


# The table of gradients, by exact expectations over all actions


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def loss_gradient(estimator: str) -> np.ndarray:
    """Expected gradient of the estimator as a loss term: tokens are drawn from the policy, and drawing has none."""

    def expected(logits: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(logits)
        drawn = jax.lax.stop_gradient(jnp.exp(logprobs))
        return jnp.sum(drawn * kl.ESTIMATORS[estimator](logprobs, jnp.log(Q)))

    return np.asarray(jax.grad(expected)(jnp.array(LOGITS)))


def weighted_loss_gradient(estimator: str, drawn_from: np.ndarray) -> np.ndarray:
    """The same with every token's term multiplied by current / behaviour ratio, and tokens of any policy."""

    def expected(logits: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(logits)
        term = kl.ESTIMATORS[estimator](logprobs, jnp.log(Q)) * importance_ratios(logprobs - jnp.log(drawn_from))
        return jnp.sum(jnp.array(drawn_from) * term)

    return np.asarray(jax.grad(expected)(jnp.array(LOGITS)))


def reward_gradient(estimator: str) -> np.ndarray:
    """Expected gradient of the policy's loss whose reward is minus the estimator."""

    def expected(logits: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(logits)
        drawn = jax.lax.stop_gradient(jnp.exp(logprobs))
        rewards = -jax.lax.stop_gradient(kl.ESTIMATORS[estimator](logprobs, jnp.log(Q)))
        return jnp.sum(drawn * policy_gradient(logprobs, rewards, jnp.ones(len(LOGITS))))

    return np.asarray(jax.grad(expected)(jnp.array(LOGITS)))


#: Central differences are good to about 1e-9; everything else is float64.
EXACT = {"rtol": 1e-7, "atol": 1e-8}


def test_the_two_divergences_differ_here() -> None:
    """Or the table would compare nothing."""
    assert np.abs(REVERSE - FORWARD).max() > 0.05
    assert np.abs(REVERSE).max() > 0.05


@pytest.mark.usefixtures("float64")
def test_k1_as_a_loss_has_no_expected_gradient() -> None:
    np.testing.assert_allclose(loss_gradient("k1"), 0.0, **EXACT)


@pytest.mark.usefixtures("float64")
def test_k2_as_a_loss_has_the_gradient_of_the_reverse_kl() -> None:
    np.testing.assert_allclose(loss_gradient("k2"), REVERSE, **EXACT)


@pytest.mark.usefixtures("float64")
def test_k3_as_a_loss_has_the_gradient_of_the_forward_kl() -> None:
    np.testing.assert_allclose(loss_gradient("k3"), FORWARD, **EXACT)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("drawn_from", ["behavior", "current"])
def test_importance_weighted_loss_has_the_gradient_of_the_reverse_kl(estimator: str, drawn_from: str) -> None:
    policy = {"behavior": MU, "current": softmax(LOGITS)}[drawn_from]
    np.testing.assert_allclose(weighted_loss_gradient(estimator, policy), REVERSE, **EXACT)


@pytest.mark.usefixtures("float64")
def test_importance_weighted_k2_has_neither_gradient() -> None:
    """It is that of E[k2], which is no divergence: the table claims k1 and k3 only."""
    got = weighted_loss_gradient("k2", MU)
    assert np.abs(got - REVERSE).max() > 0.05
    assert np.abs(got - FORWARD).max() > 0.05


@pytest.mark.usefixtures("float64")
def test_k1_as_a_reward_has_the_gradient_of_the_reverse_kl() -> None:
    np.testing.assert_allclose(reward_gradient("k1"), REVERSE, **EXACT)


@pytest.mark.usefixtures("float64")
def test_k2_as_a_reward_has_the_gradient_of_no_kl() -> None:
    """E[k2 score]: by the definition, and neither divergence's gradient."""
    p = softmax(LOGITS)
    score = np.eye(len(p)) - p  # d log p_a / d logit_z = [a = z] - p_z
    k2 = per_token("k2", np.log(p), np.log(Q))
    got = reward_gradient("k2")
    np.testing.assert_allclose(got, sum(p[a] * k2[a] * score[a] for a in range(len(p))), **EXACT)
    assert np.abs(got - REVERSE).max() > 0.05
    assert np.abs(got - FORWARD).max() > 0.05


@pytest.mark.usefixtures("float64")
def test_k3_as_a_reward_has_the_gradient_of_the_reverse_less_the_forward_kl() -> None:
    np.testing.assert_allclose(reward_gradient("k3"), REVERSE - FORWARD, **EXACT)


# Numbers that overflow elsewhere


@pytest.mark.parametrize("estimator", kl.ESTIMATORS)
@pytest.mark.parametrize("difference", [50.0, -50.0, 1000.0, -1000.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_estimators_are_finite_whatever_comes(estimator: str, difference: float, weighted: bool) -> None:
    """`difference` is log pi/q; with weights, also log pi/mu."""

    def term(p: jax.Array, q: jax.Array) -> jax.Array:
        value = kl.ESTIMATORS[estimator](p, q)
        return jnp.sum(value * importance_ratios(p - q) if weighted else value)

    logprobs = jnp.array([min(difference, 0.0)])
    value, slope = jax.value_and_grad(term)(logprobs, logprobs - difference)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("estimator", "nats_below"),
    [(k, nats) for k in ("k2", "k3") for nats in (0.0, 1.0, 19.0, 21.0, 50.0, 1000.0)],
)
def test_descent_never_lowers_what_is_below_the_reference(estimator: str, nats_below: float) -> None:
    slope = jax.grad(lambda p: jnp.sum(kl.ESTIMATORS[estimator](p, jnp.array([-0.1]))))(jnp.array([-nats_below - 0.1]))
    assert float(slope[0]) <= 0


# The coefficient's control


@pytest.mark.parametrize("measured", [0.0, 0.5, 0.85, 1.0, 1.1, 1.2, 3.0, 1e30])
def test_adapted_coefficient(measured: float) -> None:
    """Ziegler et al.: e = clip((KL - target) / target, -0.2, 0.2); the new coefficient is (1 + K e) times the old."""
    target, horizon = 0.05, 10.0
    error = (measured * target - target) / target
    error = -0.2 if error < -0.2 else 0.2 if error > 0.2 else error
    got = kl.adapted_coefficient(0.3, measured * target, target=target, horizon=horizon)
    assert got == pytest.approx(0.3 * (1 + error / horizon), rel=1e-12)


def test_coefficient_stays_at_the_target() -> None:
    assert kl.adapted_coefficient(0.3, 0.05, target=0.05, horizon=10.0) == 0.3


@pytest.mark.parametrize(("measured", "factor"), [(0.0, math.exp(-0.2)), (1e9, math.exp(0.2))])
def test_coefficient_changes_by_about_e_to_a_fifth_within_the_horizon(measured: float, factor: float) -> None:
    coefficient = 1.0
    for _ in range(50):
        coefficient = kl.adapted_coefficient(coefficient, measured, target=0.05, horizon=50.0)
    assert coefficient == pytest.approx(factor, rel=1e-3)


@pytest.mark.parametrize("measured", [math.nan, math.inf, -math.inf])
def test_measurement_that_is_not_finite_changes_nothing(measured: float) -> None:
    assert kl.adapted_coefficient(0.3, measured, target=0.05, horizon=10.0) == 0.3
