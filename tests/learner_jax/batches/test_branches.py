"""Branches in a batch: rewards are compared between episodes, each sampled token is trained on once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner_jax.batches import rl_batch
from learner_jax.contracts.trajectory import Trajectory
from learner_jax.settings.learner import LossSettings
from tests.support.branched import BRANCHES, branched_group
from tests.support.trajectories import make_group

LENGTH = 8
REWARDS, COUNTS = [1.0, 0.0, 0.5], [3, 1, 2]
#: episode of each row
OWNER = np.repeat(np.arange(3), COUNTS)


def settings(estimator: str = "grpo", credit: str = "outcome", **more: Any) -> LossSettings:
    tables: dict[str, Any] = {"advantage": {"estimator": estimator, "credit": credit}, **more}
    if estimator in ("gae", "vtrace"):
        tables["value"] = {"model": "shared"}
    return LossSettings.model_validate(tables)


def batch_of(*groups: list[Trajectory], minibatches: Any = 1, **options: Any) -> Any:
    return rl_batch(
        list(groups), settings(**options), sequence_length=LENGTH, trained_version=5, minibatches=minibatches
    )


def oracle(estimator: str) -> np.ndarray:
    """Advantages of the episodes, float64, from the papers."""
    rewards = np.array(REWARDS, np.float64)
    centered = rewards - rewards.sum() / len(rewards)
    if estimator == "grpo":
        return centered / (np.sqrt((centered**2).sum() / len(rewards)) + 1e-4)
    if estimator == "rloo":
        return np.array([r - (rewards.sum() - r) / (len(rewards) - 1) for r in rewards])
    if estimator == "reinforce_pp":  # normalised over the sampled tokens of the batch
        tokens = np.array([3 + (count - 1) for count in COUNTS], np.float64)
        mean = (tokens * rewards).sum() / tokens.sum()
        return (rewards - mean) / (np.sqrt((tokens * (rewards - mean) ** 2).sum() / tokens.sum()) + 1e-4)
    return centered


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
@pytest.mark.parametrize("credit", ["outcome", "turn"])
def test_every_branch_has_its_episode_s_advantage_in_the_group(estimator: str, credit: str) -> None:
    if credit == "turn" and estimator == "reinforce_pp":
        return  # compares whole batches
    batch, _ = batch_of(branched_group(REWARDS, COUNTS), estimator=estimator, credit=credit)
    sampled = np.asarray(batch.behavior_logprobs) < 0
    expected = oracle(estimator)[OWNER][:, None] * sampled
    if credit == "turn":  # turn k is compared among the episodes that have one; here later turns have fewer
        expected = by_turn(estimator)[:, None] * sampled
    np.testing.assert_allclose(batch.advantages, expected, rtol=0, atol=1e-6)


def by_turn(estimator: str) -> np.ndarray:
    """Of each row, which is a turn of its own: compared among the episodes that have such a turn."""
    found = []
    for episode, count in enumerate(COUNTS):
        for turn in range(count):
            others = np.array([r for r, n in zip(REWARDS, COUNTS, strict=True) if n > turn], np.float64)
            centered = REWARDS[episode] - others.mean()
            if len(others) < 2:
                centered = 0.0
            scale = {"grpo": 1 / (others.std() + 1e-4), "dr_grpo": 1.0, "rloo": len(others) / max(len(others) - 1, 1)}
            found.append(centered * scale[estimator])
    return np.array(found)


def test_each_sampled_token_is_trained_on_once_and_the_shared_prefix_is_context() -> None:
    group = branched_group(REWARDS, COUNTS)
    batch, stats = batch_of(group)
    masks = np.zeros((6, LENGTH), bool)
    for row, number in enumerate([0, 1, 2, 0, 0, 1]):
        masks[row, :6] = BRANCHES[min(number, 1)]
    assert (np.asarray(batch.weights) > 0).tolist() == masks.tolist()
    assert float(np.asarray(batch.weights).sum()) == pytest.approx(1.0)
    assert int(masks.sum()) == sum(int(t.loss_mask.sum()) for t in group) == stats.num_tokens
    tokens = [t.tokens.reshape(-1, 6) for t in group]
    assert np.asarray(batch.tokens)[:, :6].tolist() == np.concatenate(tokens).tolist()
    assert np.asarray(batch.lengths).tolist() == [6] * 6


def test_figures_count_episodes() -> None:
    group = branched_group(REWARDS, COUNTS)
    _, stats = batch_of(group)
    assert (stats.reward, stats.mixed_version_answers) == (0.5, 2)
    assert stats.staleness_mean == 4.0  # oldest version 1, trained 5
    assert stats.answer_tokens_mean == stats.num_tokens / 3


def test_updates_are_cut_by_rows() -> None:
    groups = [branched_group([1.0, 0.0], [3, 1]), make_group("run/1", size=2, rewards=[1.0, 0.0])]
    batch, _ = batch_of(*groups, minibatches=[4, 2])
    weights = np.asarray(batch.weights).sum(axis=1)
    assert (weights[:4].sum(), weights[4:].sum()) == (pytest.approx(1.0), pytest.approx(1.0))


def test_with_values_every_branch_is_paid_at_its_end() -> None:
    batch, _ = batch_of(branched_group([0.5], [2]), estimator="gae")
    episodes: Any = batch.episodes
    assert np.asarray(episodes.rewards)[:, 5].tolist() == [0.5, 0.5]
    assert np.asarray(episodes.discounts)[:, 5].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("credit", ["outcome", "turn"])
def test_a_kl_in_the_reward_is_that_of_the_whole_episode(credit: str) -> None:
    group = branched_group([0.0, 0.0], [2, 1])
    chosen = settings("dr_grpo", credit, kl={"use": "reward", "coefficient": 0.1, "estimator": "k1"})
    options: Any = {"sequence_length": LENGTH, "trained_version": 5, "kl_coefficient": 0.1}
    batch, _ = rl_batch([group], chosen, reference=lambda rows: np.zeros(rows.tokens.shape, np.float32), **options)
    behavior = [t.behavior_logprobs.astype(np.float64) for t in group]
    returns = [-0.1 * float(values.sum()) for values in behavior]
    found = np.asarray(batch.advantages)
    if credit == "outcome":
        expected = (np.array(returns) - np.mean(returns))[[0, 0, 1]]
    else:
        last = -0.1 * float(behavior[0][6:].sum())
        first = np.array(returns) - np.mean(returns)
        expected = np.array([first[0], 0.0, first[1]])
        assert last != 0
    assert [found[row][found[row] != 0].tolist()[:1] or [0.0] for row in range(3)] == [
        [pytest.approx(value, abs=1e-6)] for value in expected
    ]
