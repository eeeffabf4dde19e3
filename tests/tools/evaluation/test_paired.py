"""Paired comparison against scipy, in closed forms, and under the null in simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from tools.evaluation.paired import mcnemar, minimum_detectable, paired_difference


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 5), (3, 12), (10, 10), (200, 260)])
def test_mcnemars_test_is_scipys_binomial_test(lost: int, gained: int) -> None:
    expected = scipy.stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    found = mcnemar(lost, gained)
    assert (found.num_lost, found.num_gained) == (lost, gained)
    assert found.p_value == pytest.approx(expected)


@pytest.mark.parametrize("number", [9, 40])
def test_the_permutation_test_is_scipys(number: int) -> None:
    """Exact for few problems, by random flips for many."""
    generator = np.random.default_rng(number)
    first = generator.random(number)
    second = first + generator.normal(0.12, 0.3, size=number)
    expected = scipy.stats.permutation_test(
        (first, second),
        lambda a, b: np.mean(b - a),
        permutation_type="samples",
        n_resamples=np.inf if number < 14 else 50_000,
        rng=1,
    ).pvalue
    found = paired_difference(first.tolist(), second.tolist()).p_value
    assert found == pytest.approx(expected, abs=1e-9 if number < 14 else 0.01)


def test_pairing_sees_what_two_intervals_do_not() -> None:
    """Problems differ a lot, the models by 0.05 on each."""
    easy = np.random.default_rng(2).random(80)
    found = paired_difference(easy.tolist(), (easy + 0.05).tolist())
    assert found.estimate.value == pytest.approx(0.05)
    assert found.estimate.low == pytest.approx(0.05)
    assert found.p_value is not None
    assert found.p_value < 0.001


def test_equal_results_are_no_difference() -> None:
    found = paired_difference([0.0, 1.0, 0.5], [0.0, 1.0, 0.5])
    assert (found.estimate.value, found.estimate.low, found.estimate.high) == (0.0, 0.0, 0.0)
    assert (found.p_value, found.minimum_detectable) == (1.0, None)


def test_one_cluster_can_not_be_tested() -> None:
    found = paired_difference([0.0, 1.0], [1.0, 1.0], ["a", "a"])
    assert (found.estimate.value, found.p_value, found.minimum_detectable) == (0.5, None, None)


def test_under_the_null_one_in_twenty_is_significant() -> None:
    generator, clusters = np.random.default_rng(4), np.repeat(np.arange(30), 3)
    found = []
    for _ in range(400):
        shared = generator.normal(size=30)[clusters]
        second = 0.5 * shared + 0.5 * generator.normal(size=90)
        found.append(paired_difference([0.0] * 90, second.tolist(), clusters.tolist()).p_value)
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_the_least_detectable_difference_is_found_in_80_percent() -> None:
    """Power of the paired t-test at the difference that is named, by scipy's noncentral t."""
    differences = np.random.default_rng(6).normal(size=120)
    named = minimum_detectable(differences)
    error = differences.std(ddof=1) / 120**0.5
    critical = scipy.stats.t.ppf(0.975, 119)
    assert scipy.stats.nct.sf(critical, 119, named / error) == pytest.approx(0.8, abs=0.01)


def test_clusters_raise_the_least_detectable_difference() -> None:
    """Three equal copies of each problem hold the evidence of one."""
    once = np.random.default_rng(8).normal(size=50)
    copies, clusters = np.repeat(once, 3), np.repeat(np.arange(50), 3).tolist()
    assert minimum_detectable(copies, clusters) == pytest.approx(minimum_detectable(once))
    assert minimum_detectable(copies) < 0.6 * minimum_detectable(once)
