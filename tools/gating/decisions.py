"""Whether numbers of problems pass a bound: one-sided confidence bounds, decided as pass, fail or inconclusive.

A check passes when the bound on the bad side is beyond the limit, so a version that is truly at the limit passes with
probability 1 - confidence at most. With several looks each takes an equal part of that (Bonferroni). Sources: S.
Wellek, Testing Statistical Hypotheses of Equivalence and Noninferiority (2010), chapter 2, for the test of a
difference against a margin; W. G. Cochran, Sampling Techniques (1977), equation 9A.6, for means over clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from tools.evaluation import cluster_sums, t_quantile

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Bounds:
    """A mean over problems, and how far the truth may be on either side.

    Attributes:
      low, high: one-sided bounds, each at the confidence of one look; infinite with fewer than two clusters.
      error: standard error of the mean.
    """

    value: float
    low: float
    high: float
    error: float
    num_problems: int
    num_clusters: int


def bounds_of(
    values: Sequence[float], clusters: Sequence[Hashable] | None, *, confidence: float, looks: int, spread: float = 0.0
) -> Bounds:
    """Mean of one number per problem, and its one-sided bounds.

    Args:
      clusters: of each problem; None: each is one of its own.
      confidence: over all looks together.
      spread: by how much one problem's number can differ from another's at most; 0 where that is not known. Where all
        numbers are equal the bounds are those of a share of which nothing was seen, times this.
    """
    given = np.asarray(values, np.float64)
    sums, counts = cluster_sums(given, clusters)
    mean, number = float(given.mean()), len(sums)
    if number < 2:
        return Bounds(mean, -math.inf, math.inf, math.inf, given.size, number)
    alpha = (1 - confidence) / looks
    residuals = sums - mean * counts
    error = math.sqrt(float(residuals @ residuals) * number / (number - 1)) / float(counts.sum())
    margin = t_quantile(1 - alpha, number - 1) * error
    if error < 1e-12:
        margin = spread * (1 - alpha ** (1 / number))
    return Bounds(mean, mean - margin, mean + margin, error, given.size, number)


def decide(bounds: Bounds, limit: float, *, is_least: bool) -> Outcome:
    """Whether the truth is above a least value, or below a largest one."""
    low, high = (bounds.low, bounds.high) if is_least else (-bounds.high, -bounds.low)
    edge = limit if is_least else -limit
    if low >= edge:
        return "pass"
    return "fail" if high < edge else "inconclusive"


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several that must all pass."""
    return next((one for one in ("fail", "inconclusive") if one in outcomes), "pass")


def stop_probability(regression: float, margin: float, error: float, *, confidence: float, looks: int = 1) -> float:
    """How likely one look does not pass a version that is truly worse by `regression`, if at most `margin` is allowed.

    For `error` of the mean difference, by the normal approximation. 0 as regression gives the rate of false stops.
    """
    quantile = NormalDist().inv_cdf(1 - (1 - confidence) / looks)
    return NormalDist().cdf(quantile - (margin - regression) / error)


def found_with(power: float, margin: float, error: float, *, confidence: float, looks: int = 1) -> float:
    """The regression that one look stops with probability `power`."""
    quantile = NormalDist().inv_cdf(1 - (1 - confidence) / looks)
    return margin + (NormalDist().inv_cdf(power) - quantile) * error
