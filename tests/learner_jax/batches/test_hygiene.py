"""Which answers and groups are learned from, and what that does to a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from learner_jax.batches import Batch, BatchStats, rl_batch
from learner_jax.batches.hygiene import CleanedGroups, GroupCounts, clean_groups
from learner_jax.contracts.weights import Trajectory
from learner_jax.settings.learner import GroupSettings, LossSettings
from tests.support.trajectories import make_group

ESTIMATORS = ["grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"]
NOTHING = {
    "zero_variance_groups": 0,
    "dropped_groups": 0,
    "masked_overlong": 0,
    "penalized_overlong": 0,
    "masked_aborted": 0,
    "failed_verdicts": 0,
    "unjudged_groups": 0,
}


def group(rewards: list[float], reasons: str = "", *, group_id: str = "run/0", **options: Any) -> list[Trajectory]:
    """Answers with these rewards; `reasons` has one letter each: s(top), l(ength) or a(bort)."""
    names = {"s": "stop", "l": "length", "a": "abort"}
    answers = make_group(group_id, size=len(rewards), rewards=rewards, **options)
    return [
        dataclasses.replace(t, finish_reason=names[letter])
        for t, letter in zip(answers, reasons or "s" * len(rewards), strict=True)
    ]


def clean(*groups: list[Trajectory], **settings: Any) -> CleanedGroups:
    return clean_groups(groups, GroupSettings(**settings))


def counts(cleaned: CleanedGroups | BatchStats, **expected: int) -> None:
    """Asserts these counts, and 0 for all others."""
    record = cleaned.counts if isinstance(cleaned, CleanedGroups) else cleaned
    assert {field.name: getattr(record, field.name) for field in dataclasses.fields(GroupCounts)} == NOTHING | expected


def batch_of(*groups: list[Trajectory], estimator: str = "dr_grpo", **settings: Any) -> tuple[Batch, BatchStats]:
    tables: dict[str, Any] = {"groups": settings, "advantage": {"estimator": estimator}}
    if estimator == "gae":
        tables["value"] = {"model": "shared"}
    return rl_batch(groups, LossSettings.model_validate(tables), sequence_length=16, trained_version=1)


def answer_advantages(batch: Batch) -> np.ndarray:
    """The advantage of each answer's last sampled token; `make_group` samples tokens 3 and 4."""
    return np.asarray(batch.advantages)[:, 4]


# Groups whose rewards are all the same


def test_mixed_groups_are_learned_from() -> None:
    cleaned = clean(group([0.0, 1.0]))
    np.testing.assert_array_equal(cleaned.learned[0], [True, True])
    np.testing.assert_array_equal(cleaned.rewards[0], [0.0, 1.0])
    counts(cleaned)


@pytest.mark.parametrize(("choice", "learned"), [("keep", True), ("drop", False)])
def test_zero_variance_groups_are_counted_and_dropped_only_on_request(choice: str, learned: bool) -> None:
    cleaned = clean(group([1.0, 1.0, 1.0]), group([0.0, 1.0], group_id="run/1"), zero_variance=choice)
    np.testing.assert_array_equal(cleaned.learned[0], [learned] * 3)
    np.testing.assert_array_equal(cleaned.learned[1], [True, True])
    counts(cleaned, zero_variance_groups=1, dropped_groups=0 if learned else 1)


def test_an_aborted_answers_reward_makes_no_variance() -> None:
    cleaned = clean(group([1.0, 1.0, 0.0], "ssa"), zero_variance="drop")
    assert not cleaned.learned[0].any()
    counts(cleaned, zero_variance_groups=1, dropped_groups=1, masked_aborted=1)


def test_a_penalty_for_length_makes_variance() -> None:
    cleaned = clean(group([1.0, 1.0], "sl"), zero_variance="drop", overlong="penalize")
    assert cleaned.learned[0].all()
    counts(cleaned, penalized_overlong=1)


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
def test_a_dropped_group_is_not_in_the_denominator(reduction: str) -> None:
    groups = [group([1.0, 1.0]), group([0.0, 1.0], group_id="run/1")]
    settings = LossSettings.model_validate({"groups": {"zero_variance": "drop"}, "reduction": reduction})
    batch, _ = rl_batch(groups, settings, sequence_length=16, trained_version=1)
    weights = np.asarray(batch.weights)
    assert not weights[:2].any()
    np.testing.assert_allclose(weights[2:, 3:5], 0.25)


# Answers that reached their limit


def test_overlong_answers_are_kept_by_default() -> None:
    cleaned = clean(group([0.0, 1.0], "ls"))
    assert cleaned.learned[0].all()
    counts(cleaned)


def test_masked_overlong_answers_have_no_loss_but_count_in_statistics() -> None:
    cleaned = clean(group([0.0, 1.0, 1.0], "lss"), overlong="mask")
    np.testing.assert_array_equal(cleaned.learned[0], [False, True, True])
    np.testing.assert_array_equal(cleaned.valid[0], [True, True, True])
    counts(cleaned, masked_overlong=1)
    batch, stats = batch_of(group([0.0, 1.0, 1.0], "lss"), overlong="mask")
    np.testing.assert_allclose(answer_advantages(batch), [0.0, 1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(batch.weights).sum(axis=1), [0.0, 0.5, 0.5])
    counts(stats, masked_overlong=1)


def test_penalised_overlong_answers_lose_reward() -> None:
    settings = {"overlong": "penalize", "overlong_penalty": 0.5}
    cleaned = clean(group([1.0, 1.0], "ls"), **settings)
    np.testing.assert_array_equal(cleaned.penalties[0], [-0.5, 0.0])
    np.testing.assert_array_equal(cleaned.rewards[0], [0.5, 1.0])
    assert cleaned.learned[0].all()
    counts(cleaned, penalized_overlong=1)
    batch, stats = batch_of(group([1.0, 1.0], "ls"), **settings)
    np.testing.assert_allclose(answer_advantages(batch), [-0.25, 0.25])
    counts(stats, penalized_overlong=1)


def test_the_penalty_begins_a_buffer_before_the_sampled_limit() -> None:
    """Answers of 6 sampled tokens, by the limit each was sampled with; the prompt doesn't count."""
    limits = [6, 8, 10, 11]
    answers = [
        dataclasses.replace(t, sampling={"max_tokens": limit})
        for t, limit in zip(group([0.0] * 4, answer_tokens=6), limits, strict=True)
    ]
    cleaned = clean(answers, overlong="penalize", overlong_buffer_tokens=4)
    np.testing.assert_allclose(cleaned.penalties[0], [-1.0, -0.5, 0.0, 0.0])
    counts(cleaned, penalized_overlong=2)


def test_a_dialog_is_penalised_by_its_longest_answer_not_by_their_sum() -> None:
    """Two turns whose answers have 5 and 1 sampled tokens, in dialogs with a limit of 5 and of 9 tokens an answer."""
    turn = np.array([0] * 8 + [1], np.int32)
    answers = [
        dataclasses.replace(t, turn=turn, sampling={"max_tokens": limit})
        for t, limit in zip(group([0.0] * 2, prompt_tokens=3, answer_tokens=6), [5, 9], strict=True)
    ]
    cleaned = clean(answers, overlong="penalize", overlong_buffer_tokens=4)
    np.testing.assert_allclose(cleaned.penalties[0], [-1.0, 0.0])


def test_an_answer_that_stopped_is_not_penalised_where_its_limit_is_unknown() -> None:
    cleaned = clean(group([0.0, 1.0]), overlong="penalize", overlong_buffer_tokens=4)
    np.testing.assert_array_equal(cleaned.penalties[0], [0.0, 0.0])


def test_the_penalty_is_earned_at_the_last_token() -> None:
    batch, _ = batch_of(group([1.0, 1.0], "ls"), estimator="gae", overlong="penalize", overlong_penalty=0.5)
    assert batch.episodes is not None
    expected = np.zeros((2, 16))
    expected[:, 4] = [0.5, 1.0]
    np.testing.assert_allclose(batch.episodes.rewards, expected)


# Answers that were broken off


def test_aborted_answers_are_masked() -> None:
    cleaned = clean(group([0.0, 1.0, 1.0], "ass"))
    np.testing.assert_array_equal(cleaned.learned[0], [False, True, True])
    np.testing.assert_array_equal(cleaned.valid[0], [False, True, True])
    counts(cleaned, zero_variance_groups=1, masked_aborted=1)


def test_an_aborted_answer_drops_its_group_on_request() -> None:
    cleaned = clean(group([0.0, 1.0, 1.0], "sas"), group([0.0, 1.0], group_id="run/1"), aborted="drop_group")
    assert not cleaned.learned[0].any()
    assert cleaned.learned[1].all()
    counts(cleaned, dropped_groups=1, masked_aborted=1)


def test_aborted_answers_are_not_penalised_for_length() -> None:
    answers = [dataclasses.replace(t, sampling={"max_tokens": 2}) for t in group([0.0, 1.0], "al")]
    cleaned = clean(answers, overlong="penalize")
    np.testing.assert_array_equal(cleaned.penalties[0], [0.0, -1.0])
    counts(cleaned, zero_variance_groups=1, penalized_overlong=1, masked_aborted=1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_aborted_answers_do_not_count_in_their_groups_statistics(estimator: str) -> None:
    other = group([0.0, 1.0], group_id="run/1")
    got, stats = batch_of(group([0.0, 1.0, 100.0, 0.25], "ssas"), other, estimator=estimator)
    expected, _ = batch_of(group([0.0, 1.0, 0.25]), other, estimator=estimator)
    advantages = answer_advantages(got)
    assert advantages[2] == 0
    np.testing.assert_allclose(np.delete(advantages, 2), answer_advantages(expected), rtol=1e-6)
    counts(stats, masked_aborted=1)


def test_aborted_answers_have_no_weight_and_are_not_in_the_denominator() -> None:
    batch, _ = batch_of(group([0.0, 1.0, 1.0], "ssa"))
    np.testing.assert_allclose(np.asarray(batch.weights).sum(axis=1), [0.5, 0.5, 0.0])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("reasons", ["aaa", "saa"])
def test_a_group_with_too_few_valid_answers_has_no_advantage(estimator: str, reasons: str) -> None:
    other = group([0.0, 1.0], group_id="run/1")
    batch, _ = batch_of(group([1.0, 2.0, 3.0], reasons), other, estimator=estimator)
    advantages = answer_advantages(batch)
    assert np.isfinite(advantages).all()
    np.testing.assert_array_equal(advantages[1:3], 0.0)
    assert advantages[4] > 0
    if estimator != "reinforce_pp":  # which compares with the other group's answers
        assert advantages[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_batch_without_a_valid_answer_is_all_zeros(estimator: str) -> None:
    batch, _ = batch_of(group([1.0, 2.0], "aa"), estimator=estimator)
    np.testing.assert_array_equal(batch.weights, 0.0)
    np.testing.assert_array_equal(batch.advantages, 0.0)


# Together


def test_counts_add_up_over_groups() -> None:
    groups = [
        group([1.0, 1.0]),
        group([0.0, 1.0, 1.0], "lsa", group_id="run/1"),
        group([0.0, 1.0], "ll", group_id="run/2"),
        group([1.0, 1.0], "al", group_id="run/3"),
    ]
    cleaned = clean(*groups, zero_variance="drop", overlong="mask")
    counts(cleaned, zero_variance_groups=2, dropped_groups=2, masked_overlong=4, masked_aborted=2)
    assert [list(x) for x in cleaned.learned] == [[False] * 2, [False, True, False], [False] * 2, [False] * 2]


def test_rewards_of_1e9_are_finite_in_the_batch() -> None:
    for estimator in ESTIMATORS:
        batch, _ = batch_of(group([1e9, -1e9, 0.0]), estimator=estimator)
        assert np.isfinite(batch.advantages).all()
