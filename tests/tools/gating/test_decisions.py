"""Bounds and verdicts of a gate against SciPy, and its two error rates against the calculation, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from tools.gating.decisions import bounds_of, decide, found_with, stop_probability, worst

PROBLEMS, MARGIN = 400, 0.05
RUNS = 1500


def test_bounds_are_students_one_sided_ones() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 30)
    found = bounds_of(values.tolist(), None, confidence=0.95, looks=1)
    low = scipy.stats.ttest_1samp(values, 0.0, alternative="greater").confidence_interval(0.95).low
    high = scipy.stats.ttest_1samp(values, 0.0, alternative="less").confidence_interval(0.95).high
    assert found.low == pytest.approx(low, rel=2e-3)
    assert found.high == pytest.approx(high, rel=2e-3)
    three = bounds_of(values.tolist(), None, confidence=0.95, looks=3)
    low = scipy.stats.ttest_1samp(values, 0.0, alternative="greater").confidence_interval(1 - 0.05 / 3).low
    assert three.low == pytest.approx(low, rel=2e-3)


def test_problems_of_one_cluster_are_one_draw() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 20)
    once = bounds_of(values.tolist(), None, confidence=0.95, looks=1)
    thrice = bounds_of(np.repeat(values, 3).tolist(), np.repeat(range(20), 3).tolist(), confidence=0.95, looks=1)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.num_problems, thrice.num_clusters) == (60, 20)


def test_problems_that_all_agree_prove_as_much_as_their_number_does() -> None:
    found = bounds_of([0.0] * 59, None, confidence=0.95, looks=1, spread=1.0)
    # Clopper and Pearson: of 59 draws without a hit, a share of 5% would have shown one with probability 95%.
    assert found.high == pytest.approx(0.05, abs=5e-4)
    assert found.low == -found.high
    assert bounds_of([0.0], None, confidence=0.95, looks=1).low == -math.inf


def test_verdicts() -> None:
    found = bounds_of([0.4, 0.6] * 50, None, confidence=0.95, looks=1)
    assert [decide(found, limit, is_least=True) for limit in (0.4, 0.5, 0.6)] == ["pass", "inconclusive", "fail"]
    assert [decide(found, limit, is_least=False) for limit in (0.4, 0.5, 0.6)] == ["fail", "inconclusive", "pass"]
    assert worst(["pass", "inconclusive", "fail"]) == "fail"
    assert worst(["pass", "inconclusive"]) == "inconclusive"
    assert worst(["pass"]) == "pass"


def differences(regression: float, generator: np.random.Generator) -> np.ndarray:
    """Of pass or fail on the same problems, [RUNS, PROBLEMS]: 10% flip either way, and `regression` more are lost."""
    drawn = generator.random((RUNS, PROBLEMS))
    return np.where(drawn < 0.1, 1.0, np.where(drawn < 0.2 + regression, -1.0, 0.0))


@pytest.mark.parametrize("regression", [0.0, 0.02, MARGIN, 0.08], ids=["equal", "a little", "the margin", "worse"])
def test_how_often_a_version_is_stopped_is_as_calculated(regression: float) -> None:
    runs = differences(regression, np.random.default_rng(7))
    bounds = [bounds_of(run.tolist(), None, confidence=0.95, looks=1) for run in runs]
    stopped = sum(decide(one, -MARGIN, is_least=True) != "pass" for one in bounds)
    error = math.sqrt((0.2 + regression - regression**2) / PROBLEMS)
    expected = stop_probability(regression, MARGIN, error, confidence=0.95)
    low, high = scipy.stats.binomtest(stopped, RUNS).proportion_ci(0.999)
    assert low - 0.01 <= expected <= high + 0.01, (stopped / RUNS, expected)
    if regression >= MARGIN:
        assert stopped / RUNS > 0.94


def test_with_several_looks_what_is_at_the_margin_passes_no_more_often() -> None:
    runs, looks = differences(MARGIN, np.random.default_rng(8)), 3
    passed = 0
    for run in runs:
        seen = [run[: PROBLEMS * (look + 1) // looks] for look in range(looks)]
        bounds = [bounds_of(part.tolist(), None, confidence=0.95, looks=looks) for part in seen]
        passed += any(decide(one, -MARGIN, is_least=True) == "pass" for one in bounds)
    assert scipy.stats.binomtest(passed, RUNS, 0.05, alternative="greater").pvalue > 1e-3, passed / RUNS


def test_the_regression_that_is_found_is_the_one_that_is_stopped_so_often() -> None:
    regression = found_with(0.8, MARGIN, 0.02, confidence=0.95, looks=2)
    assert stop_probability(regression, MARGIN, 0.02, confidence=0.95, looks=2) == pytest.approx(0.8)
    assert stop_probability(MARGIN, MARGIN, 0.02, confidence=0.95) == pytest.approx(0.95)
