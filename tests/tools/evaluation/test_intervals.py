"""Intervals: how often they hold the truth in simulation, closed forms, and scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from tools.evaluation.intervals import Estimate, bootstrap_means, cluster_sums, mean_interval, t_quantile

Draw = Callable[[np.random.Generator], tuple[np.ndarray, list[int] | None, float]]


def passes(generator: np.random.Generator) -> tuple[np.ndarray, None, float]:
    """One answer to each of 100 problems; 40% pass."""
    return (generator.random(100) < 0.4).astype(float), None, 0.4


def shares(generator: np.random.Generator) -> tuple[np.ndarray, None, float]:
    """Pass shares of 4 answers to each of 60 problems, which differ in difficulty."""
    return generator.binomial(4, generator.beta(2, 2, size=60)) / 4, None, 0.5


def few(generator: np.random.Generator) -> tuple[np.ndarray, None, float]:
    """Graded scores of 20 problems."""
    return generator.beta(2, 3, size=20), None, 0.4


def clustered(generator: np.random.Generator) -> tuple[np.ndarray, list[int], float]:
    """40 documents with 1 to 9 questions each, which are easy or hard together."""
    sizes = generator.integers(1, 10, size=40)
    easy = np.repeat(generator.beta(1, 1, size=40), sizes)
    return (generator.random(len(easy)) < easy).astype(float), np.repeat(np.arange(40), sizes).tolist(), 0.5


def coverage(draw: Draw, *, rounds: int, ignore_clusters: bool = False) -> float:
    generator, held = np.random.default_rng(7), 0
    for number in range(rounds):
        values, clusters, truth = draw(generator)
        found = mean_interval(values.tolist(), None if ignore_clusters else clusters, share=True, seed=number)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    return held / rounds


@pytest.mark.parametrize("rounds", [500, pytest.param(1500, marks=pytest.mark.soak)])
@pytest.mark.parametrize("draw", [passes, shares, few, clustered])
def test_intervals_hold_the_truth_in_93_to_97_percent(draw: Draw, rounds: int) -> None:
    assert 0.93 <= coverage(draw, rounds=rounds) <= 0.97


def test_questions_of_one_document_are_no_independent_evidence() -> None:
    """The same intervals without clusters hold the truth far too seldom."""
    assert coverage(clustered, rounds=200, ignore_clusters=True) < 0.85


def test_the_bootstrap_has_the_spread_of_the_mean() -> None:
    values = np.random.default_rng(3).normal(size=200)
    means = bootstrap_means(*cluster_sums(values, None), seed=1, resamples=20_000)
    assert means.mean() == pytest.approx(values.mean(), abs=0.003)
    assert means.std() == pytest.approx(values.std() / 200**0.5, rel=0.02)


def test_clusters_weigh_by_their_problems() -> None:
    """The estimate is the mean over problems, not over clusters."""
    found = mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], share=True)
    assert (found.value, found.num_problems, found.num_clusters) == (0.75, 4, 2)


@pytest.mark.parametrize("number", [2, 10, 164])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_or_none_have_the_exact_binomial_interval(number: int, value: float) -> None:
    found = mean_interval([value] * number, share=True)
    expected = scipy.stats.binomtest(int(value * number), number).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_nothing_and_one_cluster_have_no_interval() -> None:
    assert mean_interval([]) == Estimate(None, None, None, 0, 0)
    assert mean_interval([0.5]) == Estimate(0.5, None, None, 1, 1)
    assert mean_interval([0.5, 1.0], ["a", "a"]) == Estimate(0.75, None, None, 2, 1)


def test_the_same_numbers_give_the_same_interval() -> None:
    values = np.random.default_rng(5).random(30).tolist()
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 19, 200])
def test_students_quantile_is_scipys(degrees: int) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=0.01)
