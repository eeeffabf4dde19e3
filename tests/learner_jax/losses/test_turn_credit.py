"""Credit by turn against loops written from the definitions, its special cases, and the batch that is made of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from learner_jax.batches import rl_batch
from learner_jax.contracts.weights import NOT_SAMPLED, Trajectory
from learner_jax.losses import dr_grpo, grpo, rloo, turn_advantages, turn_returns
from learner_jax.settings.learner import LossSettings
from tests.support.trajectories import make_group

RNG = np.random.default_rng(7)


def expected_returns(rewards: np.ndarray, discount: float) -> list[float]:
    return [
        sum(discount ** (later - turn) * rewards[later] for later in range(turn, len(rewards)))
        for turn in range(len(rewards))
    ]


@pytest.mark.parametrize("discount", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_returns_are_discounted_sums_of_what_follows(length: int, discount: float) -> None:
    rewards = RNG.normal(size=length)
    np.testing.assert_allclose(turn_returns(rewards, discount), expected_returns(rewards, discount), rtol=1e-12)
    np.testing.assert_array_equal(turn_returns(rewards.astype(np.float32), 1.0)[-1:], rewards[-1:].astype(np.float32))


def oracle(returns: list[np.ndarray], name: str) -> list[list[float]]:
    """Dialog by dialog and turn by turn, from the formulas of each estimator."""
    found = []
    for own in returns:
        advantages = []
        for turn, value in enumerate(own):
            peers = [other[turn] for other in returns if len(other) > turn]
            mean = sum(peers) / len(peers)
            match name:
                case "dr_grpo":
                    advantages.append(value - mean)
                case "grpo":
                    deviation = (sum((peer - mean) ** 2 for peer in peers) / len(peers)) ** 0.5
                    advantages.append((value - mean) / (deviation + 1e-4))
                case _:
                    others = (sum(peers) - value) / (len(peers) - 1) if len(peers) > 1 else value
                    advantages.append(value - others)
        found.append(advantages)
    return found


ESTIMATORS = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_turn_is_compared_with_the_same_turn_of_the_others(name: str) -> None:
    returns = [RNG.normal(size=length) for length in (3, 1, 5, 3)]
    found = turn_advantages(returns, ESTIMATORS[name], fewest=2 if name == "rloo" else 1)
    for got, expected in zip(found, oracle(returns, name), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_dialogs_of_one_turn_have_the_advantages_of_answers(name: str) -> None:
    rewards = RNG.normal(size=6)
    found = turn_advantages([np.array([reward]) for reward in rewards], ESTIMATORS[name])
    np.testing.assert_array_equal(np.concatenate(found), ESTIMATORS[name](rewards))


def test_no_group_has_no_advantages() -> None:
    assert turn_advantages([], grpo) == []


def dialog(index: int, rewards: list[float], **changes: Any) -> Trajectory:
    """One prompt token and two sampled ones in every turn; the reward of a turn stands on its last token."""
    turns = len(rewards)
    mask = np.array([False, True, True] * turns)
    paid = np.zeros(3 * turns, np.float32)
    paid[2::3] = rewards
    return dataclasses.replace(
        make_group(size=4)[index],
        tokens=np.arange(1, 3 * turns + 1, dtype=np.int32),
        loss_mask=mask,
        behavior_logprobs=np.where(mask, -0.5, 0).astype(np.float32),
        policy_version=np.where(mask, 1, NOT_SAMPLED).astype(np.int32),
        turn=np.repeat(np.arange(turns, dtype=np.int32), 3),
        rewards=paid,
        **changes,
    )


def advantages(group: list[Trajectory], **tables: Any) -> np.ndarray:
    table = {"estimator": "dr_grpo", "credit": "turn", **tables.pop("advantage", {})}
    settings = LossSettings.model_validate({"advantage": table, **tables})
    batch, _ = rl_batch([group], settings, sequence_length=12, trained_version=1)
    return np.asarray(batch.advantages)


def test_every_token_of_a_turn_has_the_turn_s_advantage() -> None:
    group = [dialog(0, [1, 0, 0]), dialog(1, [0, 0, 1]), dialog(2, [0, 0]), dialog(3, [0.5])]
    found = advantages(group, advantage={"turn_discount": 0.5})
    expected = oracle([np.array(expected_returns(r, 0.5)) for r in ([1, 0, 0], [0, 0, 1], [0, 0], [0.5])], "dr_grpo")
    for row, by_turn in zip(found, expected, strict=True):
        whole = np.zeros(12)
        for turn, value in enumerate(by_turn):
            whole[3 * turn + 1 : 3 * turn + 3] = value
        np.testing.assert_allclose(row, whole, rtol=1e-6, atol=1e-7)


def test_a_reward_of_the_first_turn_says_nothing_of_the_later_ones() -> None:
    group = [dialog(0, [1, 0, 0]), dialog(1, [0, 0, 0])]
    assert advantages(group)[:, 1:].tolist()[0][:2] == [0.5, 0.5]
    assert not advantages(group)[:, 3:].any()
    assert advantages(group, advantage={"credit": "outcome"})[0, 4] == 0.5


def test_answers_without_a_verdict_and_dropped_groups_are_in_no_comparison() -> None:
    unjudged = dialog(2, [0, 0], verdict="error", verdict_reason="died")
    group = [dialog(0, [1, 0]), dialog(1, [0, 0]), unjudged]
    found = advantages(group)
    assert found[:, 1].tolist() == [0.5, -0.5, 0]
    assert not advantages(group[1:]).any()
    assert not advantages([dialog(0, [1, 0], finish_reason="abort"), dialog(1, [0, 0])])[0].any()


def test_a_penalty_for_length_falls_on_the_last_turn() -> None:
    group = [dialog(0, [0, 0], finish_reason="length"), dialog(1, [0, 0])]
    found = advantages(
        group, groups={"overlong": "penalize", "overlong_penalty": 1.0}, advantage={"turn_discount": 0.5}
    )
    assert (found[0, 1], found[0, 4]) == (-0.25, -0.5)


def test_turn_numbers_of_any_size_are_counted_and_not_stored() -> None:
    far = dialog(0, [1, 0])
    far = dataclasses.replace(far, turn=np.where(far.turn == 1, 2**31 - 1, 0).astype(np.int32))
    assert advantages([far, dialog(1, [0, 0])])[0, 1:6].tolist() == [0.5, 0.5, 0, 0, 0]


def test_a_kl_in_the_reward_counts_for_its_turn_and_those_before() -> None:
    group = [dialog(0, [0, 0]), dialog(1, [0, 0])]
    reference = np.full((2, 12), -0.5)
    reference[0, 4] = -1.5  # one nat in the second turn of the first dialog
    settings = LossSettings.model_validate(
        {
            "advantage": {"estimator": "dr_grpo", "credit": "turn"},
            "kl": {"coefficient": 0.1, "estimator": "k1", "use": "reward"},
        }
    )
    batch, _ = rl_batch(
        [group], settings, sequence_length=12, trained_version=1, reference=lambda rows: reference, kl_coefficient=0.1
    )
    np.testing.assert_allclose(np.asarray(batch.advantages)[:, [1, 4]], [[-0.05, -0.05], [0.05, 0.05]], rtol=1e-6)


@pytest.mark.parametrize("estimator", ["gae", "vtrace", "reinforce_pp"])
def test_estimators_that_compare_no_groups_are_refused(estimator: str) -> None:
    with pytest.raises(ValueError, match="compares turns within a group"):
        LossSettings.model_validate(
            {"advantage": {"estimator": estimator, "credit": "turn"}, "value": {"model": "shared"}}
        )
