"""Advantages of whole answers, and the penalty for length, against loops written from the papers."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from learner_jax.losses import advantages
from learner_jax.losses.advantages import group_advantages, overlong_penalty

REWARDS = [np.array([1.0, 0.0, 0.0, 1.0, 1.0]), np.array([0.25, -1.5]), np.array([3.0, 2.0, 2.5])]
NUM_TOKENS = [np.array([3.0, 5.0, 1.0, 2.0, 4.0]), np.array([7.0, 1.0]), np.array([2.0, 0.0, 6.0])]
ESTIMATORS = ["grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"]


def token_normalized(per_answer: list[np.ndarray]) -> list[np.ndarray]:
    """Normalises over tokens as the paper does: every token of the batch holds its answer's value."""
    tokens = [
        float(value)
        for values, counts in zip(per_answer, NUM_TOKENS, strict=True)
        for value, count in zip(values, counts, strict=True)
        for _ in range(int(count))
    ]
    mean, deviation = statistics.fmean(tokens), statistics.pstdev(tokens)
    return [(values - mean) / (deviation + 1e-4) for values in per_answer]


def oracle(estimator: str) -> list[np.ndarray]:
    centered = [np.array([r - statistics.fmean(group) for r in group]) for group in REWARDS]
    match estimator:
        case "grpo":
            return [c / (statistics.pstdev(group) + 1e-4) for c, group in zip(centered, REWARDS, strict=True)]
        case "dr_grpo":
            return centered
        case "rloo":
            return [
                np.array([group[i] - statistics.fmean(np.delete(group, i)) for i in range(len(group))])
                for group in REWARDS
            ]
        case "reinforce_pp":
            return token_normalized(REWARDS)
        case _:
            return token_normalized(centered)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_group_advantages(estimator: str) -> None:
    got = group_advantages(REWARDS, estimator, num_tokens=NUM_TOKENS)
    assert len(got) == len(REWARDS)
    for values, expected in zip(got, oracle(estimator), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_rewards_have_no_advantage(estimator: str) -> None:
    groups, counts = [np.full(4, 0.3), np.full(3, 0.3)], [np.ones(4), np.ones(3)]
    for values in group_advantages(groups, estimator, num_tokens=counts):
        # What is left is the rounding of a mean, 5e-17, over the 1e-4 that guards the deviation.
        np.testing.assert_allclose(values, 0.0, atol=1e-11)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
def test_advantages_of_a_group_add_up_to_nothing(estimator: str) -> None:
    for values in group_advantages(REWARDS, estimator, num_tokens=NUM_TOKENS):
        assert values.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"])
def test_a_bonus_for_a_whole_group_changes_nothing(estimator: str) -> None:
    got = group_advantages([REWARDS[0] + 10, *REWARDS[1:]], estimator, num_tokens=NUM_TOKENS)
    for values, expected in zip(got, oracle(estimator), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


def test_reinforce_pp_compares_with_the_whole_batch() -> None:
    got = group_advantages([REWARDS[0] + 10, *REWARDS[1:]], "reinforce_pp", num_tokens=NUM_TOKENS)
    assert (got[0] > 0).all()
    assert (got[1] < 0).all()


@pytest.mark.parametrize("estimator", ["reinforce_pp", "reinforce_pp_baseline"])
def test_an_answer_that_is_left_out_moves_no_one(estimator: str) -> None:
    counts = [np.array([2.0, 3.0]), np.array([0.0, 0.0])]
    first, second = (
        group_advantages([np.array([0.0, 1.0]), np.array(other)], estimator, num_tokens=counts)[0]
        for other in ([5.0, 7.0], [-100.0, 1e6])
    )
    np.testing.assert_array_equal(first, second)


def test_grpo_does_not_depend_on_the_unit_of_reward() -> None:
    np.testing.assert_allclose(advantages.grpo(1e6 * REWARDS[0]), advantages.grpo(1e3 * REWARDS[0]), rtol=1e-6)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "reinforce_pp", "reinforce_pp_baseline"])
def test_a_group_of_one(estimator: str) -> None:
    (values,) = group_advantages([np.array([5.0])], estimator, num_tokens=[np.ones(1)])
    np.testing.assert_array_equal(values, [0.0])


def test_rloo_of_one_says_what_to_set() -> None:
    with pytest.raises(ValueError, match="set rollout.group_size to 2 or more"):
        advantages.rloo(np.array([1.0]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_huge_rewards_are_finite_in_fp32(estimator: str) -> None:
    groups = [np.array([1e9, -1e9, 1e9, 0.0]), np.full(4, 1e9)]
    for values in group_advantages(groups, estimator, num_tokens=[np.ones(4), np.ones(4)]):
        assert np.isfinite(values.astype(np.float32)).all()


@pytest.mark.parametrize("estimator", ["reinforce_pp", "reinforce_pp_baseline"])
def test_a_batch_without_a_learned_token_is_finite(estimator: str) -> None:
    for values in group_advantages(REWARDS, estimator, num_tokens=[0 * counts for counts in NUM_TOKENS]):
        assert np.isfinite(values).all()


def test_unknown_estimator_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'gae'; known: grpo, dr_grpo, rloo, reinforce_pp, reinforce_pp_baseline"):
        group_advantages(REWARDS, "gae", num_tokens=NUM_TOKENS)


def dapo_equation_13(length: int, limit: int, buffer: int) -> float:
    if length <= limit - buffer:
        return 0.0
    if length <= limit:
        return ((limit - buffer) - length) / buffer
    return -1.0


@pytest.mark.parametrize("length", [0, 1, 59, 60, 61, 75, 79, 80, 81, 1000])
def test_overlong_penalty_is_that_of_the_paper(length: int) -> None:
    got = overlong_penalty(length, limit=80, buffer=20, penalty=0.5)
    assert got == pytest.approx(0.5 * dapo_equation_13(length, 80, 20), rel=1e-12)


@pytest.mark.parametrize(("length", "expected"), [(79, 0.0), (80, -0.5), (81, -0.5)])
def test_without_a_buffer_only_the_limit_is_penalised(length: int, expected: float) -> None:
    assert overlong_penalty(length, limit=80, buffer=0, penalty=0.5) == expected


def test_a_buffer_longer_than_the_limit_penalises_every_answer() -> None:
    assert overlong_penalty(5, limit=10, buffer=20, penalty=1.0) == pytest.approx(-0.75)
