"""GAE and V-trace against float64 NumPy from the papers, special cases, rlax and its golden vectors."""

from __future__ import annotations

import dataclasses
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.losses import recurrence, returns
from tests.support.episodes import (
    CLOSE,
    METHODS,
    assert_targets,
    gae,
    gae_oracle,
    jitted_gae,
    jitted_vtrace,
    random_episode,
    vtrace,
    vtrace_oracle,
)


@pytest.fixture(scope="module")
def rlax() -> Any:
    with warnings.catch_warnings():
        # TensorFlow Probability, which rlax imports, reads names that JAX is about to remove.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("rlax", exc_type=ImportError)


# Generalised advantage estimation


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("trace_decay", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_gae_is_the_sum_of_the_paper(share: float, trace_decay: float, method: recurrence.Method) -> None:
    episode = random_episode(1, share=share)
    assert_targets(gae(episode, trace_decay, method), gae_oracle(episode, trace_decay))


def test_gae_without_jit() -> None:
    episode = random_episode(1, length=6)
    assert_targets(returns.generalized_advantages(*episode.arrays, trace_decay=0.9), gae_oracle(episode, 0.9))


def test_gae_with_lambda_0_is_the_temporal_difference() -> None:
    e = random_episode(2, share=1.0)
    got = gae(e, 0.0)
    expected = e.rewards + e.discounts * np.append(e.values[1:], 0.0) - e.values
    np.testing.assert_allclose(got.advantages, expected, **CLOSE)


def test_gae_with_lambda_1_is_the_return_less_the_value() -> None:
    e = random_episode(3, share=1.0)
    got = gae(e, 1.0)
    discounted = [
        sum(np.prod(e.discounts[t:k]) * e.rewards[k] for k in range(t, len(e.rewards))) for t in range(len(e.rewards))
    ]
    assert_targets(got, (np.array(discounted) - e.values, np.array(discounted)))


def test_gae_value_targets_are_lambda_returns() -> None:
    e = random_episode(4, share=1.0)
    lambda_return = np.zeros(len(e.rewards) + 1)
    for t in reversed(range(len(e.rewards))):
        following = e.values[t + 1] if t + 1 < len(e.rewards) else 0.0
        lambda_return[t] = e.rewards[t] + e.discounts[t] * (0.3 * following + 0.7 * lambda_return[t + 1])
    got = gae(e, 0.7)
    np.testing.assert_allclose(got.values, lambda_return[:-1], **CLOSE)


def test_gae_agrees_with_rlax(rlax: Any) -> None:
    episode = random_episode(5, share=1.0)
    rewards, values, discounts, decisions = episode.arrays
    discounts = discounts.at[-1].set(0.9)
    values_after = jnp.append(values[1:], 1.75)
    expected = rlax.truncated_generalized_advantage_estimation(
        rewards, discounts, 0.95, jnp.append(values, 1.75), stop_target_gradients=True
    )
    rewards = returns.with_bootstrap(rewards, values_after, jnp.zeros(24).at[-1].set(0.9))
    got = jitted_gae(rewards, values, discounts.at[-1].set(0.0), decisions, trace_decay=0.95)
    np.testing.assert_allclose(got.advantages, expected, **CLOSE)


# V-trace


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trace_decay": 0.9},
        {"clip_rho": 2.5, "clip_c": 1.5},
        {"clip_rho": 0.5, "clip_c": 2.0, "trace_decay": 0.0},
        {"clip_rho": np.inf, "clip_c": np.inf},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", METHODS)
def test_vtrace_is_the_sum_of_the_paper(share: float, options: dict[str, float], method: recurrence.Method) -> None:
    episode = random_episode(6, share=share)
    expected = vtrace_oracle(episode, **options)
    # Unbounded ratios multiply to large traces, and their rounding with them.
    scale = max(1.0, float(np.abs(expected[1]).max()))
    assert_targets(vtrace(episode, **options, method=method), expected, rtol=2e-5, atol=2e-6 * scale)


def test_vtrace_without_jit() -> None:
    episode = random_episode(6, length=6)
    assert_targets(returns.vtrace(*episode.arrays, episode.log_rhos_array), vtrace_oracle(episode))


def test_on_policy_vtrace_is_the_n_step_return() -> None:
    e = random_episode(7, share=1.0)
    bootstrap, last_discount = -0.5, 0.75
    discounts = np.append(e.discounts[:-1], last_discount)
    steps = len(e.rewards)
    expected = [
        sum(np.prod(discounts[t:k]) * e.rewards[k] for k in range(t, steps)) + np.prod(discounts[t:]) * bootstrap
        for t in range(steps)
    ]
    rewards, values, zero_at_end, decisions = e.arrays
    values_after = jnp.append(values[1:], bootstrap)
    rewards = returns.with_bootstrap(rewards, values_after, jnp.zeros(steps).at[-1].set(last_discount))
    got = jitted_vtrace(
        rewards, values, zero_at_end, decisions, jnp.zeros(steps), trace_decay=1.0, clip_rho=1.0, clip_c=1.0
    )
    assert_targets(got, (np.array(expected) - e.values, np.array(expected)))


@pytest.mark.parametrize("trace_decay", [0.0, 0.8, 1.0])
def test_on_policy_vtrace_is_gae(trace_decay: float) -> None:
    episode = dataclasses.replace(random_episode(8), log_rhos=np.zeros(24))
    assert_targets(vtrace(episode, trace_decay=trace_decay), gae_oracle(episode, trace_decay))


def test_impossible_actions_teach_vtrace_nothing() -> None:
    episode = dataclasses.replace(random_episode(9), log_rhos=np.full(24, -1000.0))
    assert_targets(vtrace(episode), (np.zeros(24), np.where(episode.decisions, episode.values, 0.0)))


def test_vtrace_golden_vectors(shared_data: Path) -> None:
    golden = json.loads((shared_data / "rl_golden_vectors" / "vtrace_rlax.json").read_text())

    def log_policy(name: str) -> np.ndarray:
        logits, actions = np.array(golden[name]), np.array(golden["actions"])
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return np.take_along_axis(log_probs, actions[..., None], axis=-1)[..., 0]

    log_rhos = jnp.array(log_policy("target_policy_logits") - log_policy("behavior_policy_logits"))
    rewards, values, discounts = (jnp.array(golden[name]) for name in ("rewards", "values", "discounts"))
    values_after = jnp.column_stack([values[:, 1:], jnp.array(golden["bootstrap_value"])])
    cut_off = jnp.zeros_like(discounts).at[:, -1].set(discounts[:, -1])
    rewards = jax.vmap(returns.with_bootstrap)(rewards, values_after, cut_off)
    bounds = {"clip_rho": golden["clip_rho_threshold"], "trace_decay": golden["lambda_"]}
    assert golden["clip_pg_rho_threshold"] == golden["clip_rho_threshold"]
    got = jax.jit(jax.vmap(partial(returns.vtrace, **bounds)))(
        rewards, values, discounts.at[:, -1].set(0.0), jnp.ones(values.shape, bool), log_rhos
    )
    # The transcribed numbers come with this bound; one of them is a difference of 1e-4 between values of 1.
    np.testing.assert_allclose(got.values - values, golden["expected_td_errors"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(got.advantages, golden["expected_pg_advantage"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("trace_decay", "clip_rho"), [(1.0, 1.0), (0.9, 1.0), (0.5, 3.0)])
def test_vtrace_agrees_with_rlax(rlax: Any, trace_decay: float, clip_rho: float) -> None:
    episode = random_episode(10, share=1.0)
    rewards, values, discounts, decisions = episode.arrays
    discounts = discounts.at[10].set(0.0).at[-1].set(0.9)
    values_after = jnp.append(values[1:], 1.75)
    expected = rlax.vtrace_td_error_and_advantage(
        values,
        values_after,
        rewards,
        discounts,
        jnp.exp(episode.log_rhos_array),
        lambda_=trace_decay,
        clip_rho_threshold=clip_rho,
        clip_pg_rho_threshold=clip_rho,
    )
    got = jitted_vtrace(
        returns.with_bootstrap(rewards, values_after, jnp.zeros(24).at[-1].set(0.9)),
        values,
        discounts.at[-1].set(0.0),
        decisions,
        episode.log_rhos_array,
        trace_decay=trace_decay,
        clip_rho=clip_rho,
        clip_c=1.0,  # as rlax has it
    )
    assert_targets(got, (np.asarray(expected.pg_advantage), np.asarray(expected.errors + values)))
