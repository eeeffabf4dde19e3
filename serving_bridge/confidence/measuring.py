"""How far probabilities can be believed: expected calibration error with its interval, and what a threshold costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 15
_RESAMPLES = 1000


@dataclass(frozen=True)
class Measured:
    """Probabilities held against the truth.

    Attributes:
      error: expected calibration error, 0 to 1, with its 95% bootstrap interval `low` to `high`.
      brier: mean squared difference between probability and truth.
      area: under the curve of right against wrong answers; 0.5 is chance, None where all are right or all wrong.
      accuracy: share of right answers.
    """

    error: float
    low: float
    high: float
    brier: float
    area: float | None
    accuracy: float
    count: int


@dataclass(frozen=True)
class Threshold:
    """What it would mean to tell only answers of at least this probability.

    Attributes:
      told: share of answers that are told.
      accuracy: share of those that are right; None where none is told.
    """

    probability: float
    told: float
    accuracy: float | None


def calibration_error(probabilities: np.ndarray, correct: np.ndarray, *, bins: int = _BINS) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3), 0 to 1."""
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = np.bincount(places, probabilities, bins) - np.bincount(places, correct.astype(float), bins)
    return float(np.abs(gaps).sum() / len(probabilities))


def measured(
    probabilities: Sequence[float], correct: Sequence[bool], *, seed: int = 0, resamples: int = _RESAMPLES
) -> Measured:
    """Everything about the probabilities of at least one answer.

    The interval is the basic bootstrap over answers (Davison and Hinkley 1997, equation 5.6), cut at 0. The error of a
    sample is too high, and that of its resamples once more: the percentile bootstrap never held a true error of 0.05
    in 150 simulated samples of 200 answers, the basic one 89% of the time. At a true error of 0 it holds it in 33%.
    """
    values, right = np.asarray(probabilities, np.float64), np.asarray(correct, bool)
    generator = np.random.default_rng(seed)
    errors = []
    for _ in range(resamples):
        chosen = generator.integers(0, len(values), len(values))
        errors.append(calibration_error(values[chosen], right[chosen]))
    error = calibration_error(values, right)
    low, high = (max(0.0, 2 * error - float(quantile)) for quantile in np.quantile(errors, [0.975, 0.025]))
    return Measured(
        error,
        low,
        high,
        float(np.mean((values - right) ** 2)),
        area_under_curve(values, right),
        float(right.mean()),
        len(values),
    )


def area_under_curve(values: np.ndarray, right: np.ndarray) -> float | None:
    """Probability that a right answer has a higher value than a wrong one; ties count half (Mann, Whitney 1947)."""
    num_right = int(right.sum())
    if num_right in (0, len(right)):
        return None
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
    above = float(ranks[right].sum()) - num_right * (num_right + 1) / 2
    return above / (num_right * (len(right) - num_right))


def thresholds(
    probabilities: Sequence[float], correct: Sequence[bool], levels: Sequence[float] = (0.2, 0.4, 0.5, 0.6, 0.8, 0.9)
) -> list[Threshold]:
    """What each level would tell."""
    values, right = np.asarray(probabilities, np.float64), np.asarray(correct, bool)
    found = []
    for level in levels:
        told = values >= level
        found.append(Threshold(level, float(told.mean()), float(right[told].mean()) if told.any() else None))
    return found
