"""Policy objectives against float64 NumPy from the papers, special cases, finite differences and golden vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.losses import policy as policy_losses
from tests.support.finite_differences import gradient

MODES: dict[str, Callable] = {"eager": lambda function: function, "jit": jax.jit}
BOUNDS = {"clip_low": 0.2, "clip_high": 0.3}
UNBOUNDED = {"clip_low": 1.0, "clip_high": float("inf")}
EXTREMES = [50.0, -50.0, 1000.0, -1000.0]

RNG = np.random.default_rng(0)
LOGPROBS = -RNG.random(64) * 3
LOG_RATIOS = 0.3 * RNG.normal(size=64)
ADVANTAGES = RNG.normal(size=64)
MASK = RNG.random(64) < 0.7


def ppo_oracle(
    log_ratios: np.ndarray, advantages: np.ndarray, low: float, high: float, dual: float | None = None
) -> np.ndarray:
    """PPO, equation 7, and dual-clip PPO, equation 5, token by token."""
    out = []
    for log_ratio, a in zip(log_ratios, advantages, strict=True):
        ratio = np.exp(log_ratio)
        objective = min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
        if dual is not None and a < 0:
            objective = max(objective, dual * a)
        out.append(-objective)
    return np.array(out)


def gspo_oracle(
    log_ratios: np.ndarray, mask: np.ndarray, advantage: float, low: float, high: float
) -> tuple[float, float]:
    """GSPO, equations 5 and 7, for one answer as a whole: (loss, ratio)."""
    chosen = [x for x, m in zip(log_ratios, mask, strict=True) if m]
    ratio = np.prod(np.exp(chosen)) ** (1 / len(chosen))
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage), ratio


# PPO


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_ppo(mode: str, dual_clip: float | None) -> None:
    log_ratios = 2 * LOG_RATIOS  # so that some ratios exceed the dual bound
    function = MODES[mode](partial(policy_losses.ppo, **BOUNDS, dual_clip=dual_clip))
    expected = ppo_oracle(log_ratios, ADVANTAGES, 0.2, 0.3, dual_clip)
    np.testing.assert_allclose(function(jnp.array(log_ratios), jnp.array(ADVANTAGES)), expected, rtol=2e-6)


@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_ppo_gradient_by_finite_differences(dual_clip: float | None) -> None:
    log_ratios = 2 * LOG_RATIOS
    got = jax.grad(
        lambda x: jnp.sum(policy_losses.ppo(x, jnp.array(ADVANTAGES), **BOUNDS, dual_clip=dual_clip)),
    )(jnp.array(log_ratios))
    expected = gradient(lambda x: ppo_oracle(x, ADVANTAGES, 0.2, 0.3, dual_clip).sum(), log_ratios)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_ppo_golden_vectors(shared_data: Path) -> None:
    golden = json.loads((shared_data / "rl_golden_vectors" / "ppo_clip_rlax.json").read_text())
    rows, actions = np.arange(len(golden["actions"])), golden["actions"]

    def logprobs(name: str) -> jax.Array:
        return jax.nn.log_softmax(jnp.array(golden[name]))[rows, jnp.array(actions)]

    log_ratios, epsilon = logprobs("logits") - logprobs("old_logits"), golden["epsilon"]
    advantages = jnp.array(golden["advantages"])
    for sign, expected in zip((1.0, -1.0), golden["expected"], strict=True):
        loss = jnp.mean(policy_losses.ppo(log_ratios, sign * advantages, clip_low=epsilon, clip_high=epsilon))
        # By hand the first is (0.3 + 0.2 + 0.1 e^-2) / 3 = 0.1711778: the published digits are good to 2e-5.
        assert float(loss) == pytest.approx(expected, rel=3e-5)


def test_dual_clip_bounds_the_loss_of_bad_answers_only() -> None:
    advantages, log_ratios = jnp.array([-1.0, 1.0]), jnp.full(2, 5.0)
    np.testing.assert_allclose(policy_losses.ppo(log_ratios, advantages, **BOUNDS, dual_clip=3.0), [3.0, -1.3])


def test_is_clipped_is_where_the_gradient_vanishes() -> None:
    log_ratios, advantages = jnp.array(LOG_RATIOS), jnp.array(ADVANTAGES)
    slope = jax.grad(lambda x: jnp.sum(policy_losses.ppo(x, advantages, **BOUNDS)))(log_ratios)
    clipped = np.asarray(policy_losses.is_clipped(log_ratios, advantages, **BOUNDS))
    assert 0 < clipped.sum() < len(clipped)
    np.testing.assert_array_equal(clipped == 1, np.asarray(slope) == 0)


def test_infinite_clip_on_policy_is_reinforce() -> None:
    logprobs, advantages = jnp.array(LOGPROBS), jnp.array(ADVANTAGES)
    got = jax.grad(lambda p: jnp.sum(policy_losses.ppo(p - logprobs, advantages, **UNBOUNDED)))(logprobs)
    np.testing.assert_allclose(got, -ADVANTAGES, rtol=1e-6)


def test_infinite_clip_off_policy_is_the_importance_weighted_gradient() -> None:
    log_ratios, advantages = jnp.array(LOG_RATIOS), jnp.array(ADVANTAGES)
    got = jax.grad(lambda x: jnp.sum(policy_losses.ppo(x, advantages, **UNBOUNDED)))(log_ratios)
    np.testing.assert_allclose(got, -np.exp(LOG_RATIOS) * ADVANTAGES, rtol=1e-6)


# CISPO


@pytest.mark.parametrize("mode", MODES)
def test_cispo(mode: str) -> None:
    function = MODES[mode](partial(policy_losses.cispo, **BOUNDS))
    got = function(jnp.array(LOGPROBS), jnp.array(LOG_RATIOS), jnp.array(ADVANTAGES))
    expected = [
        -min(max(np.exp(x), 0.8), 1.3) * a * p for p, x, a in zip(LOGPROBS, LOG_RATIOS, ADVANTAGES, strict=True)
    ]
    np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_cispo_gradient_is_that_of_the_log_prob_under_a_fixed_weight() -> None:
    anchor = jnp.array(LOGPROBS - LOG_RATIOS)
    got = jax.grad(lambda p: jnp.sum(policy_losses.cispo(p, p - anchor, jnp.array(ADVANTAGES), **BOUNDS)))(
        jnp.array(LOGPROBS)
    )
    weights = np.array([min(max(np.exp(x), 0.8), 1.3) for x in LOG_RATIOS])
    np.testing.assert_allclose(got, gradient(lambda p: -(weights * ADVANTAGES * p).sum(), LOGPROBS), rtol=1e-5)


def test_cispo_with_infinite_clip_has_the_gradient_of_ppo_with_infinite_clip() -> None:
    logprobs, anchor, advantages = jnp.array(LOGPROBS), jnp.array(LOGPROBS - LOG_RATIOS), jnp.array(ADVANTAGES)
    cispo = jax.grad(lambda p: jnp.sum(policy_losses.cispo(p, p - anchor, advantages, **UNBOUNDED)))(logprobs)
    ppo = jax.grad(lambda p: jnp.sum(policy_losses.ppo(p - anchor, advantages, **UNBOUNDED)))(logprobs)
    np.testing.assert_allclose(cispo, ppo, rtol=1e-6)


# GSPO


def gspo_mean(logprobs: jax.Array, anchor: jax.Array, mask: jax.Array, advantage: float) -> jax.Array:
    """The answer's loss: the mean over its sampled tokens."""
    advantages = jnp.full(logprobs.shape, advantage)
    tokens = policy_losses.gspo(logprobs, logprobs - anchor, advantages, mask, **BOUNDS)
    return jnp.sum(jnp.where(mask, tokens, 0.0)) / jnp.sum(mask)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("drift", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("advantage", [-1.5, 2.0])
def test_gspo_is_the_objective_of_a_whole_answer(mode: str, drift: float, advantage: float) -> None:
    log_ratios = LOG_RATIOS + drift
    got = MODES[mode](gspo_mean)(jnp.array(LOGPROBS), jnp.array(LOGPROBS - log_ratios), jnp.array(MASK), advantage)
    expected, _ = gspo_oracle(log_ratios, MASK, advantage, 0.2, 0.3)
    assert float(got) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("drift", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("advantage", [-1.5, 2.0])
def test_gspo_gradient_is_that_of_the_whole_answer(drift: float, advantage: float) -> None:
    anchor = LOGPROBS - LOG_RATIOS - drift
    got = jax.grad(gspo_mean)(jnp.array(LOGPROBS), jnp.array(anchor), jnp.array(MASK), advantage)
    expected = gradient(lambda p: gspo_oracle(p - anchor, MASK, advantage, 0.2, 0.3)[0], LOGPROBS)
    assert (expected == 0).all() == (drift * advantage > 0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("log_ratio", [-0.5, 0.1, 0.5])
@pytest.mark.parametrize("advantage", [-1.5, 2.0])
def test_gspo_of_one_token_is_ppo(log_ratio: float, advantage: float) -> None:
    anchor, advantages = jnp.array([-1.0]) - log_ratio, jnp.array([advantage])
    gspo = jax.value_and_grad(lambda p: policy_losses.gspo(p, p - anchor, advantages, p < 0, **BOUNDS)[0])
    ppo = jax.value_and_grad(lambda p: policy_losses.ppo(p - anchor, advantages, **BOUNDS)[0])
    for g, p in zip(gspo(jnp.array([-1.0])), ppo(jnp.array([-1.0])), strict=True):
        np.testing.assert_allclose(g, p, rtol=1e-6)


def test_gspo_ignores_what_is_masked() -> None:
    log_ratios = jnp.where(MASK, LOG_RATIOS, jnp.nan)
    assert float(policy_losses.sequence_log_ratio(log_ratios, jnp.array(MASK))) == pytest.approx(
        np.log(gspo_oracle(LOG_RATIOS, MASK, 1.0, 0.2, 0.3)[1]), rel=1e-5
    )


@pytest.mark.parametrize("mode", MODES)
def test_log_ratio_of_an_answer_without_a_sampled_token_is_zero(mode: str) -> None:
    got = MODES[mode](policy_losses.sequence_log_ratio)(jnp.array(LOG_RATIOS), jnp.zeros(64, bool))
    assert got == 0


# The policy gradient


@pytest.mark.parametrize("mode", MODES)
def test_policy_gradient_and_its_gradient(mode: str) -> None:
    weights = np.exp(LOG_RATIOS)

    def function(p: jax.Array, a: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(policy_losses.policy_gradient(p, a, w))

    arguments = (jnp.array(LOGPROBS), jnp.array(ADVANTAGES), jnp.array(weights))
    expected = -sum(w * a * p for w, a, p in zip(weights, ADVANTAGES, LOGPROBS, strict=True))
    assert float(MODES[mode](function)(*arguments)) == pytest.approx(expected, rel=1e-5)
    by_logprobs, by_weights = MODES[mode](jax.grad(function, argnums=(0, 2)))(*arguments)
    np.testing.assert_allclose(by_logprobs, gradient(lambda p: -(weights * ADVANTAGES * p).sum(), LOGPROBS), rtol=1e-5)
    np.testing.assert_array_equal(by_weights, 0.0)


@pytest.mark.parametrize("objective", ["ppo", "cispo", "policy_gradient"])
def test_without_bounds_samples_of_any_policy_give_the_gradient_of_the_expected_advantage(objective: str) -> None:
    """Exact expectations over the actions of a softmax policy; all three are unbiased when nothing is clipped."""
    logits, behavior_logits, advantages = np.random.default_rng(1).normal(size=(3, 5))

    def policy(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum()

    behavior = policy(behavior_logits)

    def expected_loss(z: jax.Array) -> jax.Array:
        logprobs, a = jax.nn.log_softmax(z), jnp.array(advantages)
        log_ratios = logprobs - jnp.log(behavior)
        losses = {
            "ppo": lambda: policy_losses.ppo(log_ratios, a, **UNBOUNDED),
            "cispo": lambda: policy_losses.cispo(logprobs, log_ratios, a, **UNBOUNDED),
            "policy_gradient": lambda: policy_losses.policy_gradient(
                logprobs, a, policy_losses.importance_ratios(log_ratios)
            ),
        }
        return jnp.sum(jnp.array(behavior) * losses[objective]())

    expected = gradient(lambda z: -(policy(z) * advantages).sum(), logits)
    np.testing.assert_allclose(jax.grad(expected_loss)(jnp.array(logits)), expected, rtol=1e-4, atol=1e-6)


# Numbers that overflow elsewhere


def test_ratios_beyond_20_nats_are_bounded_and_have_no_gradient() -> None:
    log_ratios = jnp.array([-1000.0, -50.0, -19.0, 0.0, 19.0, 50.0, 1000.0])
    expected = np.exp([-20.0, -20.0, -19.0, 0.0, 19.0, 20.0, 20.0])
    np.testing.assert_allclose(policy_losses.importance_ratios(log_ratios), expected, rtol=3e-6)
    slope = jax.grad(lambda x: jnp.sum(policy_losses.importance_ratios(x)))(log_ratios)
    np.testing.assert_allclose(slope, np.where(np.abs(log_ratios) < 20, expected, 0.0), rtol=3e-6)


@pytest.mark.parametrize("objective", ["ppo", "dual_clip", "cispo", "gspo", "policy_gradient"])
@pytest.mark.parametrize("bounds", [BOUNDS, UNBOUNDED], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("sampled", [0, 1, 4])
def test_losses_and_gradients_are_finite_whatever_comes(objective: str, bounds: dict[str, float], sampled: int) -> None:
    """Every pair of an extreme log ratio and an advantage of 0 or 1e9; answers of no, one and four sampled tokens."""
    mask = jnp.arange(4) < sampled

    def loss(p: jax.Array, anchor: jax.Array, a: jax.Array) -> jax.Array:
        ratios = p - anchor
        functions = {
            "ppo": lambda: policy_losses.ppo(ratios, a, **bounds),
            "dual_clip": lambda: policy_losses.ppo(ratios, a, **bounds, dual_clip=3.0),
            "cispo": lambda: policy_losses.cispo(p, ratios, a, **bounds),
            "gspo": lambda: policy_losses.gspo(p, ratios, a, mask, **bounds),
            "policy_gradient": lambda: policy_losses.policy_gradient(p, a, policy_losses.importance_ratios(ratios)),
        }
        return jnp.sum(functions[objective]())

    gaps, advantages = np.meshgrid(EXTREMES, [1e9, 0.0, -1e9])
    rows = (np.repeat(x.reshape(-1, 1), 4, axis=1) for x in (gaps, advantages))
    gap_rows, advantage_rows = (jnp.array(x) for x in rows)
    logprobs = jnp.where(gap_rows < 0, gap_rows, 0.0)  # a log-prob is at most 0: one policy is certain
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(logprobs, logprobs - gap_rows, advantage_rows)
    assert np.isfinite(values).all()
    assert np.isfinite(slopes).all()
    if objective == "ppo" and bounds is BOUNDS:
        expected = [
            ppo_oracle(np.clip(g, -20, 20), a, 0.2, 0.3).sum() for g, a in zip(gap_rows, advantage_rows, strict=True)
        ]
        np.testing.assert_allclose(values, expected, rtol=3e-6)
