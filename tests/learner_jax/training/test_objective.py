"""The composed loss: against float64 NumPy, invariant to how a batch is cut, padded, ordered or sharded, safe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from learner_jax.batches import Batch, batch_lengths, rl_batch
from learner_jax.models import TokenStats
from learner_jax.settings.learner import (
    GroupSettings,
    KLSettings,
    LossSettings,
    MeshSettings,
    MismatchSettings,
    PolicySettings,
)
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from learner_jax.training.objective import StepScalars
from tests.support.composed_losses import (
    GROUPS,
    LOSSES,
    engine_of,
    gradients,
    losses,
    made_up,
    make_batch,
    make_engine,
    relative_difference,
    scalars,
    whole_gradient,
)
from tests.support.composed_losses import params as params
from tests.support.trajectories import make_group


# Of those with a critic, a loss packed into several microbatches is compared below.
@pytest.mark.parametrize("name", losses("reinforce_pp, k1 reward, token mean"))
def test_microbatches_do_not_change_the_gradient(name: str, params: Any) -> None:
    whole, metrics = whole_gradient(name)
    split, split_metrics = gradients(make_engine(LOSSES[name], microbatch_rows=2), params, GROUPS)
    assert relative_difference(split, whole) < 1e-6
    for key, value in metrics.items():
        assert split_metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("name", losses("decoupled, corrected"))
def test_order_of_groups_and_padding_do_not_change_the_gradient(name: str, params: Any) -> None:
    plain, _ = whole_gradient(name)
    longer = make_engine(LOSSES[name], sequence_length=17)
    other, _ = gradients(longer, params, [GROUPS[i] for i in (2, 0, 3, 1)])
    assert relative_difference(other, plain) < 1e-6


@pytest.mark.parametrize("name", losses("gspo, entropy", "vtrace by turn"))
def test_packed_rows_and_shared_prompts_do_not_change_the_gradient(name: str, params: Any) -> None:
    plain, metrics = whole_gradient(name)
    # Sharing is the harder case of packing; without it, one loss that couples tokens and one that does not.
    for share in ("auto", "never") if name in ("grpo", "vtrace by turn") else ("auto",):
        engine = make_engine(LOSSES[name], row_tokens=(34,), microbatch_rows=1, share_prompts=share)
        lengths = batch_lengths(make_batch(engine, GROUPS, engine.init_state(params, seed=0)))
        plan = engine.packing(lengths, 12).plan()
        assert (plan.num_rows, plan.shares_prompts) == {"never": (3, False), "auto": (2, True)}[share]
        packed, packed_metrics = gradients(engine, params, GROUPS)
        assert relative_difference(packed, plain) < 1e-5
        for key, value in metrics.items():
            assert packed_metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(
    "name",
    [
        "vtrace by turn",
        pytest.param("gae, whitened, clipped values", marks=pytest.mark.soak),
        pytest.param("decoupled, corrected", marks=pytest.mark.soak),
    ],
)
def test_a_mesh_does_not_change_the_step(name: str, params: Any) -> None:
    def metrics(engine: Engine) -> dict[str, float]:
        state = engine.init_state(params, seed=0)
        _, metrics = engine.step(state, make_batch(engine, GROUPS, state), current_version=3)
        return {key: float(value) for key, value in metrics.items()}

    single = metrics(engine_of(name))
    sharded = metrics(make_engine(LOSSES[name], devices=8, mesh=MeshSettings(data=2, fsdp=2, tensor=2)))
    for key, value in single.items():
        assert sharded[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


# --- against float64 NumPy, on statistics that no model made ----------------------------------------------------


def loss_of(loss: LossSettings, stats: TokenStats, batch: Batch, coefficient: float = 0.1) -> tuple[float, np.ndarray]:
    """(loss, gradient with respect to the current log-probs)."""
    chosen = objective.reinforcement(loss)
    if not loss.kl.coefficient:
        batch = dataclasses.replace(batch, reference_logprobs=None)

    def function(logprobs: jax.Array) -> jax.Array:
        return chosen(dataclasses.replace(stats, logprobs=logprobs), batch, scalars(coefficient))[0]

    value, gradient = jax.jit(jax.value_and_grad(function))(stats.logprobs)
    return float(value), np.asarray(gradient)


def finite_difference(function: Callable[[np.ndarray], float], at: np.ndarray, mask: np.ndarray) -> np.ndarray:
    gradient = np.zeros(at.shape)
    for index in zip(*np.nonzero(mask), strict=True):
        shift = np.zeros(at.shape)
        shift[index] = 1e-6
        gradient[index] = (function(at + shift) - function(at - shift)) / 2e-6
    return gradient


def test_corrected_decoupled_loss_against_numpy() -> None:
    """Mismatch weight (truncated, banded) x staleness weight (capped) x PPO around the proximal policy, and k3."""
    loss = LossSettings(
        policy=PolicySettings(objective="decoupled_ppo", importance_cap=1.3),
        mismatch=MismatchSettings(truncation=1.2, band=(0.4, 2.5), lagging=True),
        kl=KLSettings(coefficient=0.1),
    )
    stats, batch, a = made_up()
    proximal = a["current"]  # one update per batch: the policy at the start of the step

    def oracle(current: np.ndarray) -> float:
        total = 0.0
        for row, t in zip(*np.nonzero(a["mask"]), strict=True):
            is_current = a["versions"][row, t] == 3
            trainer = proximal[row, t] if is_current else a["trainer"][row, t]
            mismatch = np.exp(trainer - a["behavior"][row, t])
            mismatch_weight = min(mismatch, 1.2) if 0.4 <= mismatch <= 2.5 else 0.0
            staleness = min(np.exp(proximal[row, t] - trainer), 1.3)
            ratio = np.exp(current[row, t] - proximal[row, t])
            advantage = a["advantages"][row, t]
            surrogate = -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            d = a["reference"][row, t] - current[row, t]
            k3 = np.exp(d) - 1 - d
            total += a["weights"][row, t] * (mismatch_weight * staleness * surrogate + 0.1 * k3)
        return total

    value, gradient = loss_of(loss, stats, batch)
    assert value == pytest.approx(oracle(a["current"]), rel=1e-5)
    # The clip's kink is at 0.8 and 1.2, the ratio is 1: finite differences are safe there.
    expected = finite_difference(oracle, a["current"], a["mask"])
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_mismatch_is_corrected_for_by_itself_and_staleness_is_not_touched() -> None:
    """Tokens of an older version whose trainer log-probs nobody recomputed have no mismatch that could be known."""
    loss = LossSettings(mismatch=MismatchSettings(band=(0.999, 1.001)))
    stats, batch, a = made_up()
    batch = dataclasses.replace(batch, trainer_logprobs=None)
    _, metrics = objective.reinforcement(loss)(stats, batch, scalars())
    current_share = a["weights"][a["versions"] == 3].sum()
    assert float(metrics["mismatch_masked"]) == pytest.approx(current_share, rel=1e-5)


def test_log_probs_of_older_versions_are_recomputed_with_their_own_weights(params: Any) -> None:
    engine = make_engine(LossSettings(), microbatch_rows=4)
    batch, _ = rl_batch(GROUPS, LossSettings(), sequence_length=12, trained_version=4)
    older = jax.tree.map(lambda x: 1.1 * x, params)
    got = engine.lagging.logprobs(batch, {2: older, 3: params}, current_version=3)
    versions, behavior = np.asarray(batch.policy_version), np.asarray(batch.behavior_logprobs)
    expected = np.where(versions == 2, engine.statistics.logprobs(older, np.asarray(batch.tokens)), behavior)
    assert {1, 2, 3} <= set(versions.ravel().tolist())  # version 1 is gone, version 3 is the current one
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.abs(got - behavior)[versions == 2].min() > 1e-4


@pytest.mark.parametrize("changed", [2, 3])
def test_older_tokens_are_the_learned_ones_from_before_the_weights_changed(changed: int) -> None:
    """Tokens that nobody sampled have version -1, and log-probs that mean nothing."""
    stats, batch, a = made_up()
    loss = LossSettings(kl=KLSettings(coefficient=0.0))
    told = StepScalars(jnp.int32(3), jnp.int32(changed), jnp.float32(0.0))
    _, metrics = objective.reinforcement(loss)(stats, dataclasses.replace(batch, reference_logprobs=None), told)
    log_ratios = np.abs(a["current"] - a["behavior"])
    lagged, current = a["mask"] & (a["versions"] < changed), a["mask"] & (a["versions"] == 3)
    assert lagged.sum() == (0 if changed == 2 else 7)
    expected = {
        "lagged_tokens": lagged.sum(),
        "lagged_log_ratio_max": log_ratios[lagged].max(initial=0.0),
        "mismatch_tokens": current.sum(),
        "mismatch_sum": log_ratios[current].sum(),
        "mismatch_max": log_ratios[current].max(),
        "learned_tokens": a["mask"].sum(),
    }
    assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected, rel=1e-5)


def test_one_update_needs_no_proximal_pass() -> None:
    """The explicit proximal policy and the learner at the start of the step give the same loss and gradient."""
    loss = LossSettings(policy=PolicySettings(objective="decoupled_ppo"))
    stats, batch, _ = made_up()
    implicit = loss_of(loss, stats, batch)
    explicit = loss_of(loss, stats, dataclasses.replace(batch, proximal_logprobs=stats.logprobs))
    assert explicit[0] == implicit[0]
    np.testing.assert_array_equal(explicit[1], implicit[1])


def test_an_explicit_proximal_policy_is_what_the_clip_is_around() -> None:
    loss = LossSettings(policy=PolicySettings(objective="decoupled_ppo", importance="none"))
    stats, batch, a = made_up()
    moved = dataclasses.replace(batch, proximal_logprobs=stats.logprobs - 0.5 * jnp.sign(batch.advantages))
    _, gradient = loss_of(loss, stats, moved)
    assert not gradient.any()  # every ratio has left the bounds on the side that gains
    _, metrics = objective.reinforcement(loss)(stats, moved, scalars())
    assert float(metrics["clip_fraction"]) == pytest.approx(a["weights"].sum())


def test_without_bounds_every_objective_is_the_importance_weighted_policy_gradient() -> None:
    stats, batch, a = made_up()
    ratio = np.exp(a["current"] - a["behavior"])
    expected = -a["weights"] * ratio * a["advantages"]
    infinite = {"clip_low": 1.0, "clip_high": float("inf")}
    for policy in (
        PolicySettings(objective="ppo", **infinite),
        PolicySettings(objective="cispo", **infinite),
        PolicySettings(objective="policy_gradient", importance_cap=float("inf")),
        PolicySettings(objective="decoupled_ppo", importance_cap=float("inf"), **infinite),
    ):
        _, gradient = loss_of(LossSettings(policy=policy), stats, batch)
        np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-7, err_msg=policy.objective)


def test_effective_sample_size_is_that_of_the_whole_batch(params: Any) -> None:
    engine = make_engine(LOSSES["grpo"], microbatch_rows=2)
    state = engine.init_state(params, seed=0)
    batch = make_batch(engine, GROUPS, state)
    log_ratio = engine.statistics.logprobs(state.params, np.asarray(batch.tokens)) - np.asarray(batch.behavior_logprobs)
    w = np.exp(log_ratio[np.asarray(batch.weights) > 0].astype(np.float64))
    _, metrics = engine.step(state, batch, current_version=3)
    assert float(metrics["effective_sample_share"]) == pytest.approx(w.sum() ** 2 / (len(w) * (w**2).sum()), rel=1e-5)


def test_effective_sample_size_scales_the_step(params: Any) -> None:
    def moved(exponent: float) -> tuple[np.ndarray, float]:
        engine = make_engine(LossSettings(effective_sample_exponent=exponent))
        state = engine.init_state(params, seed=0)
        before = np.asarray(state.params["embed"]["weight"])
        state, metrics = engine.step(state, make_batch(engine, GROUPS, state), current_version=3)
        return np.asarray(state.params["embed"]["weight"]) - before, float(metrics["effective_sample_share"])

    full, share = moved(0.0)
    scaled, _ = moved(0.5)
    assert share < 0.999
    np.testing.assert_allclose(scaled, full * share**0.5, atol=2e-7)  # both are differences of fp32 parameters


# --- safety -------------------------------------------------------------------------------------------------------

#: One loss of every objective but CISPO, and of every kind of advantage: by group, by batch, by a critic, by V-trace.
EVERY_KIND = losses(
    "grpo",
    "reinforce_pp, k1 reward, token mean",
    "gspo, entropy",
    "decoupled, corrected",
    "gae, whitened, clipped values",
    "vtrace by turn",
)


@pytest.mark.parametrize("name", EVERY_KIND)
@pytest.mark.parametrize("shift", [-50.0, 50.0])
def test_absurd_ratios_never_reach_the_parameters_as_nan(name: str, shift: float, params: Any) -> None:
    engine = engine_of(name)
    state = engine.init_state(params, seed=0)
    batch = make_batch(engine, GROUPS, state)
    batch = dataclasses.replace(batch, behavior_logprobs=np.asarray(batch.behavior_logprobs) + np.float32(shift))
    state, metrics = engine.step(state, batch, current_version=3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert np.isfinite(float(metrics["loss"])) or float(metrics["skipped"]) == 1


@pytest.mark.parametrize("name", EVERY_KIND)
@pytest.mark.parametrize("reward", [1e9, np.nan, np.inf])
def test_absurd_rewards_are_survived_or_skipped_and_counted(name: str, reward: float, params: Any) -> None:
    engine = engine_of(name)
    state = engine.init_state(params, seed=0)
    with np.errstate(invalid="ignore"):
        absurd = [dataclasses.replace(t, rewards=t.rewards * np.float32(reward)) for t in GROUPS[0]]
        batch = make_batch(engine, [absurd, *GROUPS[1:]], state)
    before = flatten_dict(jax.tree.map(np.asarray, state.params))
    state, metrics = engine.step(state, batch, current_version=3)
    after = flatten_dict(jax.tree.map(np.asarray, state.params))
    assert all(np.isfinite(x).all() for x in after.values())
    if np.isfinite(reward):
        return
    if float(metrics["skipped"]):
        assert all((after[path] == before[path]).all() for path in before)
    else:  # the group was left out, and the others are learned from
        weights = np.asarray(batch.weights)
        assert not weights[: len(absurd)].any()
        assert weights[len(absurd) :].any()
        assert any((after[path] != before[path]).any() for path in before)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_rows_without_a_learned_token_and_answers_of_one_token_are_fine(name: str, params: Any) -> None:
    short = [make_group(f"run/{i}", answer_tokens=1, seed=i, rewards=[0.0, 1.0]) for i in range(3)]
    cut = [dataclasses.replace(t, finish_reason="length") for t in make_group("run/3", seed=3)]
    engine = engine_of(name)
    state = engine.init_state(params, seed=0)
    batch = make_batch(engine, [*short, cut], state, groups=GroupSettings(overlong="mask"))
    assert not np.asarray(batch.weights)[-2:].any()
    _, metrics = engine.step(state, batch, current_version=3)
    assert all(np.isfinite(float(x)) for x in metrics.values())
    assert float(metrics["skipped"]) == 0
