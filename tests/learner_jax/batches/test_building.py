"""What a batch holds of each answer: episodes for values, weights of each update, prompts in common, and rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from learner_jax.batches import Sequences, rl_batch
from learner_jax.batches.sequences import BatchError, sequences
from learner_jax.batches.supervised import supervised_batch
from learner_jax.contracts.weights import NOT_SAMPLED, Trajectory
from learner_jax.settings.learner import LossSettings
from tests.support.trajectories import make_group

LENGTH = 12


def settings(estimator: str = "dr_grpo", **more: Any) -> LossSettings:
    tables: dict[str, Any] = {"advantage": {"estimator": estimator, **more.pop("advantage", {})}, **more}
    if estimator in ("gae", "vtrace"):
        tables["value"] = {"model": "shared"}
    return LossSettings.model_validate(tables)


def dialog(finish_reason: Any = "stop") -> Trajectory:
    """Tokens p a a o o a a, of turns 0 0 0 1 1 1 1; the right answer pays at the end, an earlier one at its own."""
    mask = np.array([0, 1, 1, 0, 0, 1, 1], bool)
    return dataclasses.replace(
        make_group(size=1)[0],
        tokens=np.arange(1, 8, dtype=np.int32),
        loss_mask=mask,
        behavior_logprobs=np.where(mask, -0.5, 0).astype(np.float32),
        policy_version=np.where(mask, 1, NOT_SAMPLED).astype(np.int32),
        turn=np.array([0, 0, 0, 1, 1, 1, 1], np.int32),
        rewards=np.array([0, 0, 0.25, 0, 0, 0, 1], np.float32),
        finish_reason=finish_reason,
    )


def episode(segments: str, finish_reason: str = "stop") -> dict[str, list[float]]:
    """The first seven tokens of each array of an episode; the rest is checked to be what pads."""
    advantage = {"segments": segments, "discount": 0.5, "turn_discount": 0.25}
    batch, _ = rl_batch(
        [[dialog(finish_reason)]], settings("gae", advantage=advantage), sequence_length=LENGTH, trained_version=1
    )
    arrays = dataclasses.asdict(batch.episodes) if dataclasses.is_dataclass(batch.episodes) else {}
    for name, array in arrays.items():
        assert (np.asarray(array)[0, 7:] == (1.0 if name == "discounts" else 0)).all(), name
    return {name: np.asarray(array)[0, :7].tolist() for name, array in arrays.items()}


def test_by_token_every_sampled_token_is_a_decision_of_its_own() -> None:
    found = episode("token")
    assert found["decisions"] == [0, 1, 1, 0, 0, 1, 1]
    assert [found["decision_index"][t] for t in (1, 2, 5, 6)] == [1, 2, 5, 6]
    assert found["rewards"] == [0, 0, 0.25, 0, 0, 0, 1]
    assert found["discounts"] == [0.5, 0.5, 0.125, 0.5, 0.5, 0.5, 0]
    assert found["bootstraps"] == [0] * 7
    assert found["value_weights"] == [0, 0.25, 0.25, 0, 0, 0.25, 0.25]


def test_by_turn_the_first_sampled_token_decides() -> None:
    found = episode("turn")
    assert found["decisions"] == [0, 1, 0, 0, 0, 1, 0]
    assert [found["decision_index"][t] for t in (1, 2, 5, 6)] == [1, 1, 5, 5]
    assert found["value_weights"] == [0, 0.5, 0, 0, 0, 0.5, 0]


def test_an_answer_that_was_cut_is_bootstrapped_at_its_end() -> None:
    found = episode("token", "length")
    assert found["bootstraps"] == [0] * 6 + [0.5]
    assert found["discounts"][6] == 0


def test_each_update_has_a_normaliser_of_its_own() -> None:
    """Updates of one and of three answers, given by their rows; equal ones by their number."""
    groups = [make_group("run/0", size=1, answer_tokens=1), make_group("run/1", size=3, answer_tokens=4)]
    batch, _ = rl_batch(groups, settings(), sequence_length=LENGTH, trained_version=1, minibatches=[1, 3])
    np.testing.assert_allclose(np.asarray(batch.weights).sum(axis=1), [1, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    batch, _ = rl_batch(groups, settings(), sequence_length=LENGTH, trained_version=1, minibatches=2)
    np.testing.assert_allclose(np.asarray(batch.weights).sum(axis=1), [1 / 2] * 4, rtol=1e-6)


def test_a_kl_that_is_a_term_of_the_loss_changes_no_advantage() -> None:
    group = make_group(size=3, rewards=[0.0, 1.0, 0.5])

    def advantages(use: str) -> np.ndarray:
        batch, _ = rl_batch(
            [group],
            settings(kl={"coefficient": 0.3, "use": use}),
            sequence_length=LENGTH,
            trained_version=1,
            reference=lambda rows: np.linspace(-3, 0, rows.tokens.size, dtype=np.float32).reshape(rows.tokens.shape),
            kl_coefficient=0.3,
        )
        assert batch.reference_logprobs is not None
        return np.asarray(batch.advantages)[:, 3]

    np.testing.assert_allclose(advantages("loss"), [-0.5, 0.5, 0.0], atol=1e-6)
    assert np.abs(advantages("reward") - [-0.5, 0.5, 0.0]).max() > 0.01


def test_a_kl_as_reward_without_a_reference_is_none() -> None:
    group = make_group(size=2, rewards=[0.0, 1.0])
    chosen = settings(kl={"coefficient": 0.3, "use": "reward"})
    batch, _ = rl_batch([group], chosen, sequence_length=LENGTH, trained_version=1, kl_coefficient=0.3)
    np.testing.assert_allclose(np.asarray(batch.advantages)[:, 3], [-0.5, 0.5])
    assert batch.reference_logprobs is None


def test_normalising_over_the_batch_keeps_rewards_and_lengths_apart() -> None:
    """Answers of 1 to 4 tokens: mean and deviation of REINFORCE++ count each token, those of rewards each answer."""
    groups = [make_group(f"run/{n}", size=1, answer_tokens=n, rewards=[reward]) for n, reward in ((1, 5.0), (4, 0.0))]
    batch, _ = rl_batch(groups, settings("reinforce_pp"), sequence_length=LENGTH, trained_version=1)
    assert np.asarray(batch.advantages)[0, 3] > 0 > np.asarray(batch.advantages)[1, 3]


def test_a_trajectory_as_long_as_a_row_fits_and_a_longer_one_is_refused() -> None:
    group = make_group(size=2)
    assert sequences([group], sequence_length=5).tokens.shape == (2, 5)
    with pytest.raises(BatchError, match=r"run/0/0 has 5 tokens, rows hold 4: raise learner\.sequence_length"):
        sequences([group], sequence_length=4)


def answers(*tokens: list[int], prompt: int) -> list[Trajectory]:
    """A group with these tokens, of which so many are the prompt."""
    group = make_group(size=len(tokens))
    return [
        dataclasses.replace(
            t,
            tokens=np.array(ids, np.int32),
            loss_mask=np.arange(len(ids)) >= prompt,
            turn=np.zeros(len(ids), np.int32),
        )
        for t, ids in zip(group, tokens, strict=True)
    ]


@pytest.mark.parametrize(
    ("group", "shared"),
    [
        (answers([1, 2, 3, 9], [1, 2, 3, 9], prompt=3), 3),
        (answers([1, 2, 3, 9], [1, 5, 3, 9], prompt=3), 1),
        (answers([1, 2, 3, 9], [1, 2, 3, 9], [1, 2, 4, 9], prompt=3), 2),
        (answers([1, 2, 3, 9], [5, 2, 3, 9], prompt=3), 0),
        (answers([1, 2, 3, 9], prompt=3), 0),
        ([*answers([1, 2, 3, 9], prompt=3), *answers([1, 2, 3, 9], prompt=2)], 2),
    ],
)
def test_a_group_shares_what_its_prompts_begin_with(group: list[Trajectory], shared: int) -> None:
    assert sequences([group], sequence_length=5).lengths.shared.tolist() == [shared] * len(group)


def test_lengths_say_whose_answer_each_is() -> None:
    lengths = sequences(
        [answers([1, 2, 9], [1, 2, 9, 9], prompt=2), answers([3, 9], prompt=1)], sequence_length=5
    ).lengths
    assert (lengths.tokens.tolist(), lengths.groups.tolist()) == ([3, 4, 2], [0, 0, 1])
    assert lengths.shared.tolist() == [2, 2, 0]


def test_parts_of_a_batch_are_joined_in_order_and_their_groups_stay_apart() -> None:
    parts = [
        sequences([answers([1, 2, 9], [1, 2, 9, 9], prompt=2), answers([3, 9], prompt=1)], sequence_length=5),
        sequences([answers([4, 9], [4, 8], prompt=1)], sequence_length=5),
    ]
    whole = Sequences.joined(parts)
    assert whole.tokens[:, 0].tolist() == [1, 1, 3, 4, 4]
    assert whole.sampled.sum(axis=1).tolist() == [1, 2, 1, 1, 1]
    assert whole.lengths.tokens.tolist() == [3, 4, 2, 2, 2]
    assert whole.lengths.groups.tolist() == [0, 0, 1, 2, 2]
    assert whole.lengths.shared.tolist() == [2, 2, 0, 1, 1]
    assert Sequences.joined(parts[:1]) is parts[0]


def test_a_group_whose_advantages_are_not_finite_teaches_nothing_and_hurts_no_other() -> None:
    groups = [make_group("run/0"), make_group("run/1", rewards=[0.0, 1.0])]
    groups[0] = [dataclasses.replace(t, rewards=np.array([0, 0, 0, 3e38, 3e38], np.float32)) for t in groups[0]]
    with np.errstate(over="ignore"):
        batch, stats = rl_batch(groups, settings("grpo"), sequence_length=LENGTH, trained_version=1)
    assert stats.dropped_groups == 1
    assert np.isfinite(batch.advantages).all()
    assert np.asarray(batch.weights).sum(axis=1).tolist() == [0, 0, 0.5, 0.5]
    assert np.asarray(batch.advantages)[3, 3] > 0.9


def test_examples_with_answers_fill_rows_and_none_is_longer() -> None:
    examples = [([1, 2], [False, True]), ([3, 4, 5], [False, True, True])]
    batch = supervised_batch(examples, sequence_length=3)
    assert np.asarray(batch.tokens).tolist() == [[1, 2, 0], [3, 4, 5]]
    np.testing.assert_allclose(batch.weights, np.array([[0, 1, 0], [0, 1, 1]]) / 3, rtol=1e-6)
    assert np.asarray(batch.lengths).tolist() == [2, 3]
    assert np.asarray(batch.groups).tolist() == [0, 1]
    assert (np.asarray(batch.policy_version) == NOT_SAMPLED).all()
    with pytest.raises(BatchError, match="a supervised example has 3 tokens, rows hold 2"):
        supervised_batch(examples, sequence_length=2)
