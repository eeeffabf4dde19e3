"""Scores, calibrations and their measures against scipy, the papers' formulas, and special cases."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from serving_bridge.confidence import (
    METHODS,
    Calibration,
    CalibrationError,
    Sums,
    agreement,
    area_under_curve,
    calibration_error,
    fitted,
    measured,
    read_calibration,
    score_of,
    thresholds,
    write_calibration,
)


def known(seed: int, count: int, *, slope: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores in nats, and truths that follow from them by a logistic curve."""
    generator = np.random.default_rng(seed)
    scores = -generator.gamma(2.0, 0.4, count)
    truth = generator.random(count) < 1 / (1 + np.exp(-(slope * scores + 2.0)))
    return scores, truth


def test_scores_are_those_of_the_formulas() -> None:
    logprobs = [-0.5, -2.0, -0.25, 0.0]
    sums = Sums()
    for value in logprobs:
        sums.add(value)
    assert score_of("mean", sums) == pytest.approx(np.mean(logprobs))
    assert score_of("min", sums) == -2.0
    assert score_of("length", sums) == pytest.approx(sum(logprobs) / ((5 + 4) ** 0.6 / 6**0.6))
    assert score_of("agreement", sums, 0.25) == 0.25
    assert score_of("mean", Sums()) is None
    assert score_of("agreement", sums) is None


def test_agreement_is_the_f1_of_words() -> None:
    assert agreement("It is twelve.", []) is None
    assert agreement("It is twelve.", ["it IS twelve"]) == 1.0
    assert agreement("It is twelve.", ["no idea"]) == 0.0
    assert agreement("a b c", ["a b d"]) == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
    assert agreement("a a", ["a"]) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert agreement("", [""]) == 1.0
    assert agreement("a", ["a", "b"]) == 0.5


def test_platt_is_scipys_optimum() -> None:
    scores, truth = known(3, 400)
    found = fitted("mean", "platt", scores, truth)
    num_right, num_wrong = truth.sum(), (~truth).sum()
    targets = np.where(truth, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))

    def loss(weights: np.ndarray) -> float:
        odds = weights[0] * scores + weights[1]
        return float(np.sum(np.logaddexp(0, odds) - targets * odds))

    wanted = optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    np.testing.assert_allclose([found.slope, found.offset], wanted, rtol=1e-4)
    assert found.probability(-0.3) == pytest.approx(1 / (1 + math.exp(-(found.slope * -0.3 + found.offset))))


def test_isotonic_is_scipys() -> None:
    scores, truth = known(4, 150)
    scores = np.round(scores, 1)  # with ties
    found = fitted("min", "isotonic", scores, truth)
    order = np.argsort(scores, kind="stable")
    values, counts = np.unique(scores[order], return_counts=True)
    means = [truth[scores == value].mean() for value in values]
    wanted = optimize.isotonic_regression(means, weights=counts).x
    np.testing.assert_allclose([found.probability(float(value)) for value in values], wanted, atol=1e-12)
    assert found.probability(-100.0) == wanted[0]
    assert found.probability(0.0) == wanted[-1]


def test_temperature_is_scipys_optimum() -> None:
    scores, truth = known(5, 300)
    found = fitted("mean", "temperature", scores, truth)
    odds = np.log(np.exp(scores) / (1 - np.exp(scores)))

    def loss(inverse: float) -> float:
        return float(np.sum(np.logaddexp(0, odds * inverse) - truth * odds * inverse))

    wanted = optimize.minimize_scalar(loss, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-9}).x
    assert 1 / found.temperature == pytest.approx(wanted, rel=1e-4)


def test_the_calibration_error_by_hand() -> None:
    probabilities = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    right = np.array([False, True, True, True, False])
    by_hand = (abs(0.1 - 1) + abs(2.9 - 2)) / 5
    assert calibration_error(probabilities, right) == pytest.approx(by_hand)
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_calibrating_helps_on_answers_that_it_has_not_seen(method: str) -> None:
    scores, truth = known(6, 2000)
    held, right = known(7, 2000)
    found = fitted("mean", method, scores, truth)  # type: ignore[arg-type]
    before = measured([math.exp(score) for score in held], right.tolist(), resamples=200)
    after = measured([found.probability(float(score)) for score in held], right.tolist(), resamples=200)
    assert after.error < before.error
    if method != "temperature":  # its one parameter can't move the middle
        assert after.high < before.low
    assert before.low < before.error
    assert after.brier < before.brier
    assert after.area == pytest.approx(before.area, abs=0.02), "a rising map keeps the order, but for ties"


def test_the_area_is_scipys_mann_whitney() -> None:
    scores, truth = known(8, 200)
    scores = np.round(scores, 1)
    wanted = stats.mannwhitneyu(scores[truth], scores[~truth]).statistic / (truth.sum() * (~truth).sum())
    assert area_under_curve(scores, truth) == pytest.approx(wanted)
    assert area_under_curve(scores, np.ones(200, bool)) is None


def test_thresholds_tell_what_they_cost() -> None:
    found = thresholds([0.1, 0.5, 0.9, 0.95], [False, False, True, False], (0.0, 0.5, 0.99))
    assert [(one.told, one.accuracy) for one in found] == [(1.0, 0.25), (0.75, pytest.approx(1 / 3)), (0.0, None)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 0), st.booleans()), min_size=20, max_size=60))
def test_any_answers_give_probabilities_that_rise(answers: list[tuple[float, bool]]) -> None:
    scores, truth = zip(*answers, strict=True)
    for method in ("isotonic", "temperature"):
        if len(set(truth)) < 2:
            with pytest.raises(CalibrationError, match="expected both"):
                fitted("mean", method, scores, truth)  # type: ignore[arg-type]
            continue
        found = fitted("mean", method, scores, truth)  # type: ignore[arg-type]
        told = [found.probability(score) for score in np.linspace(-25, 0, 40)]
        assert all(0 <= p <= 1 for p in told)
        assert all(a <= b + 1e-12 for a, b in itertools.pairwise(told))


def test_a_file_keeps_it(tmp_path: Path) -> None:
    scores, truth = known(9, 100)
    for method in METHODS:
        found = fitted("mean", method, scores, truth)
        write_calibration(tmp_path / "calibration.json", found)
        assert read_calibration(tmp_path / "calibration.json") == found


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "no calibration"),
        ("[]", "no calibration"),
        ('{"schema": "other", "score": "mean", "method": "platt", "num_fitted": 9}', "no calibration"),
        ('{"schema": "weir-confidence-1", "score": "mood", "method": "platt", "num_fitted": 9}', "mood"),
        (
            '{"schema": "weir-confidence-1", "score": "mean", "method": "temperature", "num_fitted": 9,'
            ' "temperature": 0}',
            "temperature",
        ),
        ('{"schema": "weir-confidence-1", "score": "mean", "method": "isotonic", "num_fitted": 9}', "at least one"),
        (
            '{"schema": "weir-confidence-1", "score": "mean", "method": "isotonic", "num_fitted": 9,'
            ' "scores": [0, 1], "probabilities": [1, 0]}',
            "none falling",
        ),
    ],
)  # fmt: skip
def test_a_file_that_holds_none_is_told(content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=told):
        read_calibration(path)


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"tools\.confidence fit"):
        read_calibration(tmp_path / "none.json")


def test_too_little_to_fit_on() -> None:
    with pytest.raises(CalibrationError, match="at least 20"):
        fitted("mean", "platt", [-1.0] * 19, [True] * 19)
    with pytest.raises(CalibrationError, match="not finite"):
        fitted("mean", "platt", [-math.inf] * 20, [True, False] * 10)


def test_separable_answers_end_too() -> None:
    scores = [-1.0] * 20 + [-0.1] * 20
    found = fitted("mean", "platt", scores, [False] * 20 + [True] * 20)
    assert found.probability(-1.0) < 0.1 < 0.9 < found.probability(-0.1)
    assert isinstance(found, Calibration)


def test_the_interval_holds_the_true_error() -> None:
    generator, held = np.random.default_rng(11), 0
    for _ in range(40):
        told = generator.random(200)
        right = generator.random(200) < np.clip(told - 0.1, 0, 1)
        found = measured(told.tolist(), right.tolist(), resamples=100)
        held += found.low <= 0.095 <= found.high  # the exact error of these: 0.1, less where the truth is cut at 0
    assert held >= 30
