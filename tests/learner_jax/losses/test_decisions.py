"""Targets at decisions alone: tokens between them, ends of episodes, and numbers that overflow elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.losses import returns
from tests.support.episodes import (
    Episode,
    assert_targets,
    gae,
    gae_oracle,
    jitted_gae,
    random_episode,
    vtrace,
    vtrace_oracle,
)


def on_policy_gae(rewards: list[float], discounts: list[float], decisions: list[bool], values: list[float]) -> Any:
    arrays = (jnp.array(x) for x in (rewards, values, discounts, decisions))
    return jitted_gae(*arrays, trace_decay=1.0)


def test_rewards_and_discounts_between_decisions_count() -> None:
    got = on_policy_gae([1.0, 2.0, 4.0, 8.0], [0.5, 0.5, 0.5, 0.0], [True, False, True, False], [3.0, 9.0, 5.0, 9.0])
    # The second decision earns 4 + 0.5 x 8 = 8; the first 1 + 0.5 x 2 + 0.25 x 8 = 4.
    np.testing.assert_allclose(got.values, [4.0, 0.0, 8.0, 0.0])
    np.testing.assert_allclose(got.advantages, [1.0, 0.0, 3.0, 0.0])


def test_rewards_before_the_first_decision_are_nobodys() -> None:
    got = on_policy_gae([0.0, 100.0, 2.0, 0.0], [1.0, 1.0, 1.0, 0.0], [False, False, True, False], [0.0, 0.0, 0.5, 0.0])
    np.testing.assert_allclose(got.advantages, [0.0, 0.0, 1.5, 0.0])


def test_a_trace_does_not_decay_between_decisions() -> None:
    rewards, discounts = jnp.array([0.0, 0.0, 0.0, 1.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    decisions = jnp.array([True, False, False, True])
    got = jitted_gae(rewards, jnp.zeros(4), discounts, decisions, trace_decay=0.5)
    np.testing.assert_allclose(got.advantages, [0.5, 0.0, 0.0, 1.0])


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
def test_values_and_ratios_between_decisions_are_never_read(estimator: str) -> None:
    episode = random_episode(11)
    decisions = episode.decisions
    assert 0 < decisions.sum() < 24
    poisoned = dataclasses.replace(
        episode,
        values=np.where(decisions, episode.values, np.nan),
        log_rhos=np.where(decisions, episode.log_rhos, np.nan),
    )
    if estimator == "gae":
        assert_targets(gae(poisoned, 0.9), gae_oracle(episode, 0.9))
    else:
        assert_targets(vtrace(poisoned), vtrace_oracle(episode))


def test_padding_changes_nothing() -> None:
    episode = random_episode(12, length=16)

    def padded(x: np.ndarray, fill: float) -> np.ndarray:
        return np.concatenate([x, np.full(8, fill, x.dtype)])

    row = Episode(
        rewards=padded(episode.rewards, 0.0),
        values=padded(episode.values, np.nan),
        discounts=padded(episode.discounts, 1.0),
        decisions=padded(episode.decisions, False),
        log_rhos=padded(episode.log_rhos, np.nan),
    )
    advantages, values = vtrace_oracle(episode)
    assert_targets(vtrace(row), (padded(advantages, 0.0), padded(values, 0.0)))


def test_rows_of_a_batch_are_independent() -> None:
    episodes = [random_episode(seed) for seed in (13, 14, 15)]
    stacked = [jnp.stack(column) for column in zip(*(e.arrays for e in episodes), strict=True)]
    got = jax.jit(jax.vmap(returns.vtrace))(*stacked, jnp.stack([e.log_rhos_array for e in episodes]))
    expected = [vtrace_oracle(e) for e in episodes]
    assert_targets(got, (np.stack([e[0] for e in expected]), np.stack([e[1] for e in expected])))


def test_no_gradient_flows_through_targets() -> None:
    episode = random_episode(16)
    rewards, values, discounts, decisions = episode.arrays

    def total(rewards: jax.Array, values: jax.Array, log_rhos: jax.Array) -> jax.Array:
        v = returns.vtrace(rewards, values, discounts, decisions, log_rhos)
        g = returns.generalized_advantages(rewards, values, discounts, decisions, trace_decay=0.9)
        return sum(jnp.sum(x) for x in (v.advantages, v.values, g.advantages, g.values))

    for g in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(rewards, values, episode.log_rhos_array):
        np.testing.assert_array_equal(g, 0.0)


def test_bootstrap_is_the_discounted_value_of_what_was_cut_off() -> None:
    got = returns.with_bootstrap(jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0]), jnp.array([0.0, 0.9]))
    np.testing.assert_allclose(got, [1.0, 20.0])


def test_a_finished_episode_gets_no_bootstrap() -> None:
    got = returns.with_bootstrap(jnp.array([1.0, 2.0]), jnp.array([jnp.nan, jnp.inf]), jnp.zeros(2))
    np.testing.assert_array_equal(got, [1.0, 2.0])


@pytest.mark.parametrize("log_rho", [50.0, -50.0, 1000.0, -1000.0])
def test_extreme_ratios_act_as_their_bounds(log_rho: float) -> None:
    episode = random_episode(17)
    bounded = dataclasses.replace(episode, log_rhos=np.full(24, min(log_rho, 0.0)))
    assert_targets(vtrace(dataclasses.replace(episode, log_rhos=np.full(24, log_rho))), vtrace_oracle(bounded))


@pytest.mark.parametrize("log_rho", [50.0, 1000.0])
def test_vtrace_without_bounds_is_finite_at_extreme_ratios(log_rho: float) -> None:
    episode = dataclasses.replace(random_episode(17), log_rhos=np.full(24, log_rho))
    got = vtrace(episode, clip_rho=np.inf)
    assert np.isfinite(got.advantages).all()
    assert np.isfinite(got.values).all()


@pytest.mark.parametrize("trace_decay", [0.0, 1.0])
def test_targets_of_huge_rewards_keep_their_precision(trace_decay: float) -> None:
    episode = random_episode(18)
    huge = dataclasses.replace(episode, rewards=np.float32(1e9) * episode.rewards.astype(np.float32).astype(np.float64))
    # The absolute bound is CLOSE's in units of the rewards.
    bound = {"rtol": 1e-5, "atol": 1e4}
    assert_targets(vtrace(huge, trace_decay=trace_decay), vtrace_oracle(huge, trace_decay=trace_decay), **bound)
    assert_targets(gae(huge, trace_decay), gae_oracle(huge, trace_decay), **bound)


def test_an_answer_of_one_token() -> None:
    one = (jnp.array([1.0]), jnp.array([0.25]), jnp.array([0.0]), jnp.array([True]))
    assert_targets(returns.generalized_advantages(*one, trace_decay=0.9), (np.array([0.75]), np.array([1.0])))
    assert_targets(returns.vtrace(*one, jnp.log(jnp.array([0.5]))), (np.array([0.375]), np.array([0.625])))


def test_a_row_without_decisions_has_no_targets() -> None:
    episode = dataclasses.replace(random_episode(19), decisions=np.zeros(24, bool), log_rhos=np.full(24, 1000.0))
    for targets in (gae(episode, 0.9), vtrace(episode)):
        np.testing.assert_array_equal(targets.advantages, 0.0)
        np.testing.assert_array_equal(targets.values, 0.0)
