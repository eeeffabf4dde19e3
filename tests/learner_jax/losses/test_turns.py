"""Turns as decisions: ratios of whole turns, and the episodes that a batch makes of them."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.batches import rl_batch
from learner_jax.contracts.weights import NOT_SAMPLED, Trajectory
from learner_jax.losses import returns
from learner_jax.settings.learner import LossSettings
from tests.support.episodes import (
    MODES,
)
from tests.support.trajectories import make_group


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
