"""What happens at a bound exactly, and which objectives are taken chunk by chunk."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.losses import objectives
from learner_jax.losses.advantages import ADVANTAGE_EPS, group_advantages, normalized
from learner_jax.losses.corrections import effective_sample_share, mismatch_weights
from learner_jax.losses.policy import importance_ratios, is_clipped, sequence_sum
from learner_jax.losses.terms import loss_counts, loss_weights, value_loss

MASK = jnp.ones(3, bool)
LOG_RATIOS = jnp.log(jnp.array([0.5, 1.0, 2.0]))
LOW, _, HIGH = (float(ratio) for ratio in importance_ratios(LOG_RATIOS))


def test_a_ratio_at_a_bound_is_inside() -> None:
    np.testing.assert_array_equal(mismatch_weights(LOG_RATIOS, MASK, veto=LOW), [1, 1, 1])
    np.testing.assert_array_equal(mismatch_weights(LOG_RATIOS, MASK, veto=LOW + 1e-6), [0, 0, 0])
    np.testing.assert_array_equal(mismatch_weights(LOG_RATIOS, MASK, band=(LOW, HIGH)), [1, 1, 1])
    np.testing.assert_array_equal(mismatch_weights(LOG_RATIOS, MASK, band=(LOW + 1e-6, HIGH - 1e-6)), [0, 1, 0])
    mean = float(importance_ratios(jnp.log(jnp.array(2.0))))
    for band in ((0.5, mean), (mean, 3.0)):
        one = mismatch_weights(LOG_RATIOS[2:], MASK[2:], sequence_band=band)
        np.testing.assert_array_equal(one, [1])


def test_a_ratio_at_a_clipping_bound_still_has_its_gradient() -> None:
    bounds = {"clip_low": 1 - LOW, "clip_high": HIGH - 1}
    for advantage in (1.0, -1.0):
        np.testing.assert_array_equal(is_clipped(LOG_RATIOS, jnp.full(3, advantage), **bounds), [0, 0, 0])
    beyond = LOG_RATIOS + jnp.array([-0.01, 0, 0.01])
    np.testing.assert_array_equal(is_clipped(beyond, jnp.array([-1.0, 1.0, 1.0]), **bounds), [1, 0, 1])
    np.testing.assert_array_equal(is_clipped(beyond, jnp.array([1.0, 1.0, -1.0]), **bounds), [0, 0, 0])
    np.testing.assert_array_equal(is_clipped(beyond, jnp.zeros(3), **bounds), [0, 0, 0])


def test_a_capped_weight_counts_as_clipped_and_one_below_not() -> None:
    _, shown = objectives.policy_gradient(
        jnp.zeros(3), LOG_RATIOS, jnp.ones(3), importance="truncated", importance_cap=HIGH
    )
    np.testing.assert_array_equal(shown["clip_fraction"], [0, 0, 1])
    loss, shown = objectives.policy_gradient(
        jnp.full(3, -1.0), LOG_RATIOS, jnp.ones(3), importance="none", importance_cap=2.0
    )
    np.testing.assert_array_equal(loss, [1, 1, 1])
    np.testing.assert_array_equal(shown["clip_fraction"], [0, 0, 0])


def test_decoupled_ppo_is_weighted_only_where_that_is_asked_for() -> None:
    arguments = (jnp.zeros(3), LOG_RATIOS, jnp.ones(3))
    options = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "importance_cap": 1.5}
    plain, _ = objectives.decoupled_ppo(*arguments, **options, importance="none")
    weighted, _ = objectives.decoupled_ppo(*arguments, **options, importance="truncated")
    np.testing.assert_allclose(plain, [-1, -1, -1])
    np.testing.assert_allclose(weighted, [-0.5, -1, -1.5], rtol=1e-6)


def test_a_token_s_loss_is_its_own_but_for_gspo() -> None:
    local = {name: getattr(getattr(objectives, name), "token_local", False) for name in
             ("ppo", "decoupled_ppo", "cispo", "policy_gradient", "gspo")}  # fmt: skip
    assert local == {"ppo": True, "decoupled_ppo": True, "cispo": True, "policy_gradient": True, "gspo": False}


def test_padding_is_a_segment_of_its_own_and_never_a_sequence_s() -> None:
    segments = jnp.array([0, 2, 2, -1, -1])
    np.testing.assert_array_equal(sequence_sum(jnp.array([1.0, 2, 4, 8, 16]), segments), [1, 6, 6, 24, 24])
    full = jnp.array([0, 1, 2])  # as many sequences as tokens
    np.testing.assert_array_equal(sequence_sum(jnp.array([1.0, 2, 4]), full), [1, 2, 4])


def test_old_values_alone_or_a_clip_alone_clip_nothing() -> None:
    values, targets, old = jnp.array([3.0]), jnp.array([1.0]), jnp.array([9.0])
    assert value_loss(values, targets, old).tolist() == [2.0]
    assert value_loss(values, targets, clip=0.1).tolist() == [2.0]
    assert value_loss(values, targets, old, clip=0.1).tolist() == pytest.approx([0.5 * 7.9**2])


def test_weights_of_a_part_are_normalised_by_the_whole() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    assert loss_counts(mask) == (2, 3)
    for reduction, expected in (("sequence_mean", [0.05, 0.05, 0.1]), ("token_mean", [0.01] * 3)):
        weights = loss_weights(mask, reduction=reduction, counts=(10, 100))
        np.testing.assert_allclose(weights[mask], expected, rtol=1e-6)
    constant = loss_weights(mask, reduction="constant", constant_tokens=4, counts=(10, 100))
    np.testing.assert_allclose(constant[mask], [0.025] * 3, rtol=1e-6)


def test_an_estimator_of_one_s_own_gets_each_group() -> None:
    groups = [np.array([1.0, 3.0]), np.array([2.0])]
    tokens = [np.ones(2), np.ones(1)]
    found = group_advantages(groups, lambda rewards: 2 * rewards, num_tokens=tokens)
    assert [group.tolist() for group in found] == [[2, 6], [4]]


def test_normalising_is_by_the_weighted_deviation() -> None:
    found = normalized(np.array([0.0, 4.0, 100.0]), np.array([3.0, 1.0, 0.0]))
    deviation = np.sqrt((3 * 1 + 9) / 4)
    np.testing.assert_allclose(found[:2], np.array([-1.0, 3.0]) / (deviation + ADVANTAGE_EPS))


def test_a_share_without_weight_is_whole_and_a_small_one_counts() -> None:
    assert float(effective_sample_share(jnp.array(0.0), jnp.array(0.0), jnp.array(3))) == 1.0
    assert float(effective_sample_share(jnp.array(1e-3), jnp.array(1e-6), jnp.array(4))) == pytest.approx(0.25)
