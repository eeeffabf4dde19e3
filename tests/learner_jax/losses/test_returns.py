"""Recurrences, GAE and V-trace against float64 NumPy from the papers, special cases, rlax and its golden vectors."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.batches import rl_batch
from learner_jax.contracts.weights import NOT_SAMPLED, Trajectory
from learner_jax.losses import recurrence, returns
from learner_jax.losses.recurrence import reverse_linear_recurrence
from learner_jax.settings.learner import LossSettings
from tests.support.finite_differences import gradient
from tests.support.trajectories import make_group

METHODS = ["sequential", "associative"]
MODES: dict[str, Callable] = {"eager": lambda function: function, "jit": jax.jit}
# fp32 against float64: a few tens of roundings of 6e-8 each, on values of about 10.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@dataclasses.dataclass(frozen=True)
class Episode:
    """One sequence in float64 whose numbers fp32 holds exactly, so that only the arithmetic differs."""

    rewards: np.ndarray
    values: np.ndarray
    discounts: np.ndarray
    decisions: np.ndarray
    log_rhos: np.ndarray

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        floats = (jnp.asarray(x, jnp.float32) for x in (self.rewards, self.values, self.discounts))
        return (*floats, jnp.asarray(self.decisions))

    @property
    def log_rhos_array(self) -> jax.Array:
        return jnp.asarray(self.log_rhos, jnp.float32)


def random_episode(seed: int, *, length: int = 24, share: float = 0.5) -> Episode:
    """A finished episode; about `share` of its tokens are decisions, 1.0 for all of them."""
    rng = np.random.default_rng(seed)

    def fp32(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32).astype(np.float64)

    discounts = fp32(rng.uniform(0.6, 1.0, length))
    discounts[-1] = 0.0
    return Episode(
        rewards=fp32(rng.normal(size=length)),
        values=fp32(rng.normal(size=length)),
        discounts=discounts,
        decisions=rng.random(length) < share,
        log_rhos=fp32(0.8 * rng.normal(size=length)),
    )


def recurrence_oracle(inputs: np.ndarray, decays: np.ndarray) -> np.ndarray:
    out, following = np.zeros(len(inputs)), 0.0
    for t in reversed(range(len(inputs))):
        following = inputs[t] + decays[t] * following
        out[t] = following
    return out


def decision_process(episode: Episode) -> tuple[np.ndarray, Episode]:
    """(positions of the decisions, the episode with one step per decision).

    A step's reward is the discounted sum of what is earned until the next decision, its discount the product of the
    discounts on the way (a semi-Markov process: Sutton, Precup and Singh, 1999, section 3).
    """
    positions = np.flatnonzero(episode.decisions)
    rewards, discounts = [], []
    for start, stop in zip(positions, [*positions[1:], len(episode.rewards)], strict=True):
        reward, passed = 0.0, 1.0
        for t in range(start, stop):
            reward += passed * episode.rewards[t]
            passed *= episode.discounts[t]
        rewards.append(reward)
        discounts.append(passed)
    steps = Episode(
        rewards=np.array(rewards),
        values=episode.values[positions],
        discounts=np.array(discounts),
        decisions=np.ones(len(positions), bool),
        log_rhos=episode.log_rhos[positions],
    )
    return positions, steps


def gae_oracle(episode: Episode, trace_decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Equation 16 as the sum that it is, over decisions: (advantages, advantages + values), 0 elsewhere."""
    positions, steps = decision_process(episode)
    values = np.append(steps.values, 0.0)
    advantages, targets = np.zeros(len(episode.rewards)), np.zeros(len(episode.rewards))
    for t, position in enumerate(positions):
        weight = 1.0
        for k in range(t, len(positions)):
            delta = steps.rewards[k] + steps.discounts[k] * values[k + 1] - values[k]
            advantages[position] += weight * delta
            weight *= steps.discounts[k] * trace_decay
        targets[position] = advantages[position] + values[t]
    return advantages, targets


def vtrace_oracle(
    episode: Episode, *, trace_decay: float = 1.0, clip_rho: float = 1.0, clip_c: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """IMPALA, equation 1 as a sum of products, and the advantage of section 4.2: (advantages, v), 0 elsewhere."""
    positions, steps = decision_process(episode)
    count = len(positions)
    values = np.append(steps.values, 0.0)
    rho = [min(clip_rho, np.exp(x)) for x in steps.log_rhos]
    c = [trace_decay * min(clip_c, np.exp(x)) for x in steps.log_rhos]
    v = np.zeros(count + 1)
    for t in range(count):
        v[t] = values[t]
        for k in range(t, count):
            delta = rho[k] * (steps.rewards[k] + steps.discounts[k] * values[k + 1] - values[k])
            v[t] += np.prod(steps.discounts[t:k]) * np.prod(c[t:k]) * delta
    advantages, targets = np.zeros(len(episode.rewards)), np.zeros(len(episode.rewards))
    for t, position in enumerate(positions):
        following = trace_decay * v[t + 1] + (1 - trace_decay) * values[t + 1]
        advantages[position] = rho[t] * (steps.rewards[t] + steps.discounts[t] * following - values[t])
        targets[position] = v[t]
    return advantages, targets


_gae = jax.jit(returns.generalized_advantages, static_argnames="method")
_vtrace = jax.jit(returns.vtrace, static_argnames="method")


def gae(episode: Episode, trace_decay: float, method: recurrence.Method = "auto") -> returns.Targets:
    return _gae(*episode.arrays, trace_decay=trace_decay, method=method)


def vtrace(
    episode: Episode,
    *,
    trace_decay: float = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    method: recurrence.Method = "auto",
) -> returns.Targets:
    """All numbers are traced, so that one compilation serves all of them."""
    numbers = {"trace_decay": trace_decay, "clip_rho": clip_rho, "clip_c": clip_c}
    return _vtrace(*episode.arrays, episode.log_rhos_array, **numbers, method=method)


def assert_targets(targets: returns.Targets, expected: tuple[np.ndarray, np.ndarray], **tolerance: float) -> None:
    np.testing.assert_allclose(targets.advantages, expected[0], **(tolerance or CLOSE))
    np.testing.assert_allclose(targets.values, expected[1], **(tolerance or CLOSE))


@pytest.fixture(scope="module")
def rlax() -> Any:
    with warnings.catch_warnings():
        # TensorFlow Probability, which rlax imports, reads names that JAX is about to remove.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("rlax", exc_type=ImportError)


# Linear recurrences


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 7, 256, 4096])
def test_recurrence_is_its_definition(method: recurrence.Method, length: int) -> None:
    rng = np.random.default_rng(length)
    inputs, decays = rng.normal(size=length).astype(np.float32), rng.random(length).astype(np.float32)
    got = jax.jit(partial(reverse_linear_recurrence, method=method))(jnp.array(inputs), jnp.array(decays))
    exact = recurrence_oracle(inputs.astype(np.float64), decays.astype(np.float64))
    # Sums that cancel keep the rounding of their terms, so the error is measured against the terms' magnitude.
    scale = recurrence_oracle(np.abs(inputs).astype(np.float64), decays.astype(np.float64))
    assert np.max(np.abs(np.asarray(got) - exact) / scale) < 1e-6


@pytest.mark.parametrize("length", [1, 7, 256, 4096])
def test_associative_equals_sequential_under_vmap_and_jit(length: int) -> None:
    rng = np.random.default_rng(length)
    # Positive terms don't cancel, so that a relative bound holds for every entry. The decays reach 1, and in half of
    # the rows some are 0.
    inputs = jnp.array(rng.random((4, length)), jnp.float32)
    decays = np.minimum(rng.uniform(0.9, 1.05, (4, length)), 1.0)
    decays[2:] = np.where(rng.random((2, length)) < 0.2, 0.0, decays[2:])
    sequential, associative = (
        jax.jit(jax.vmap(partial(reverse_linear_recurrence, method=method)))(inputs, jnp.array(decays, jnp.float32))
        for method in METHODS
    )
    np.testing.assert_allclose(associative, sequential, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_passes_a_decay_of_zero(method: recurrence.Method) -> None:
    inputs, decays = jnp.arange(1.0, 10.0), jnp.full(9, 0.9).at[4].set(0.0)
    function = jax.jit(partial(reverse_linear_recurrence, method=method))
    got, other = function(inputs, decays), function(inputs.at[5:].set(-1e30), decays)
    np.testing.assert_array_equal(got[:5], other[:5])
    assert got[4] == 5


@pytest.mark.parametrize("method", METHODS)
def test_recurrence_gradients_by_finite_differences(method: recurrence.Method) -> None:
    rng = np.random.default_rng(0)
    inputs, decays, readout = rng.normal(size=9), rng.random(9), rng.normal(size=9)
    decays[3] = 0.0  # where a product of all decays has no inverse

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def function(x: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.sum(jnp.array(readout) * reverse_linear_recurrence(x, d, method=method))

    got = function(jnp.array(inputs), jnp.array(decays))
    expected = (
        gradient(lambda x: readout @ recurrence_oracle(x, decays), inputs),
        gradient(lambda d: readout @ recurrence_oracle(inputs, d), decays),
    )
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "loops"), [(7, True), (8, False)])
def test_auto_takes_what_the_table_says(monkeypatch: pytest.MonkeyPatch, length: int, loops: bool) -> None:
    monkeypatch.setitem(recurrence.ASSOCIATIVE_FROM, jax.default_backend(), 8)
    jaxpr = jax.make_jaxpr(reverse_linear_recurrence)(jnp.ones(length), jnp.ones(length))
    assert ("scan" in {equation.primitive.name for equation in jaxpr.eqns}) is loops


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'parallel'; known: auto, sequential, associative"):
        reverse_linear_recurrence(jnp.ones(3), jnp.ones(3), method="parallel")  # type: ignore[arg-type]


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
    got = _gae(rewards, values, discounts.at[-1].set(0.0), decisions, trace_decay=0.95)
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
    got = _vtrace(rewards, values, zero_at_end, decisions, jnp.zeros(steps), trace_decay=1.0, clip_rho=1.0, clip_c=1.0)
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
    got = _vtrace(
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


# Decisions and the tokens between them


def on_policy_gae(rewards: list[float], discounts: list[float], decisions: list[bool], values: list[float]) -> Any:
    arrays = (jnp.array(x) for x in (rewards, values, discounts, decisions))
    return _gae(*arrays, trace_decay=1.0)


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
    got = _gae(rewards, jnp.zeros(4), discounts, decisions, trace_decay=0.5)
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


# Ends of episodes


def test_bootstrap_is_the_discounted_value_of_what_was_cut_off() -> None:
    got = returns.with_bootstrap(jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0]), jnp.array([0.0, 0.9]))
    np.testing.assert_allclose(got, [1.0, 20.0])


def test_a_finished_episode_gets_no_bootstrap() -> None:
    got = returns.with_bootstrap(jnp.array([1.0, 2.0]), jnp.array([jnp.nan, jnp.inf]), jnp.zeros(2))
    np.testing.assert_array_equal(got, [1.0, 2.0])


# Numbers that overflow elsewhere


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


# Turns as decisions


def turns_of(lengths: list[int], *, between: int) -> tuple[np.ndarray, np.ndarray]:
    """(loss mask, decision index) of turns of those lengths with `between` environment tokens before each."""
    mask, index = [], []
    for length in lengths:
        mask += [False] * between + [True] * length
        index += [0] * between + [len(index) + between] * length
    return np.array(mask), np.array(index, np.int32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mean", [False, True])
def test_ratio_of_a_turn_is_the_product_of_its_tokens(mode: str, mean: bool) -> None:
    lengths = [3, 1, 5]
    mask, index = turns_of(lengths, between=2)
    log_ratios = np.where(mask, np.random.default_rng(0).normal(size=len(mask)), np.nan)
    expected = np.zeros(len(mask))
    for start in np.unique(index[mask]):
        ratios = [np.exp(log_ratios[t]) for t in range(len(mask)) if mask[t] and index[t] == start]
        product = np.prod(ratios)
        expected[start] = np.log(product ** (1 / len(ratios)) if mean else product)
    got = MODES[mode](partial(returns.turn_log_ratios, mean=mean))(
        jnp.array(log_ratios), jnp.array(mask), jnp.array(index)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mean", [False, True])
def test_ratio_of_a_turn_of_one_token_is_the_tokens(mean: bool) -> None:
    mask, index = turns_of([1] * 6, between=1)
    log_ratios = jnp.array(np.random.default_rng(1).normal(size=len(mask)))
    got = returns.turn_log_ratios(log_ratios, jnp.array(mask), jnp.array(index), mean=mean)
    np.testing.assert_array_equal(got, jnp.where(mask, log_ratios, 0.0))


def dialog(lengths: list[int]) -> Trajectory:
    """An answer in turns of those lengths, with two environment tokens before each."""
    mask, _ = turns_of(lengths, between=2)
    rng = np.random.default_rng(0)
    turn = np.cumsum(np.concatenate([[0], np.diff(mask.astype(int)) < 0]))
    (trajectory,) = make_group(size=1)
    return dataclasses.replace(
        trajectory,
        tokens=rng.integers(1, 32, len(mask)).astype(np.int32),
        loss_mask=mask,
        behavior_logprobs=np.where(mask, -rng.random(len(mask)), 0.0).astype(np.float32),
        policy_version=np.where(mask, 1, NOT_SAMPLED).astype(np.int32),
        turn=turn.astype(np.int32),
        rewards=rng.normal(size=len(mask)).astype(np.float32),
        finish_reason="length",
    )


def episodes_of(trajectory: Trajectory, segments: str) -> Any:
    advantage = {"estimator": "gae", "segments": segments, "discount": 0.5, "turn_discount": 0.25}
    settings = LossSettings.model_validate({"advantage": advantage, "value": {"model": "shared"}})
    batch, _ = rl_batch([[trajectory]], settings, sequence_length=24, trained_version=1)
    return batch.episodes


def test_turns_of_one_token_are_tokens() -> None:
    by_token, by_turn = (episodes_of(dialog([1, 1, 1, 1]), segments) for segments in ("token", "turn"))
    for field in dataclasses.fields(by_token):
        np.testing.assert_array_equal(getattr(by_turn, field.name), getattr(by_token, field.name), err_msg=field.name)


def test_a_turn_is_decided_at_its_first_sampled_token() -> None:
    episodes = episodes_of(dialog([3, 2]), "turn")
    np.testing.assert_array_equal(np.flatnonzero(episodes.decisions[0]), [2, 7])
    np.testing.assert_array_equal(episodes.decision_index[0][[2, 3, 4, 7, 8]], [2, 2, 2, 7, 7])


def test_turn_discount_is_paid_once_between_turns_and_the_end_is_bootstrapped() -> None:
    episodes = episodes_of(dialog([3, 2]), "turn")
    # Tokens 0-4 are turn 0, 5-8 turn 1; the answer was cut off after token 8.
    np.testing.assert_allclose(episodes.discounts[0, :9], [0.5, 0.5, 0.5, 0.5, 0.125, 0.5, 0.5, 0.5, 0.0])
    np.testing.assert_allclose(episodes.bootstraps[0], [0.0] * 8 + [0.5] + [0.0] * 15)
