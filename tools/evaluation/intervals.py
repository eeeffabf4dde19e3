"""95% intervals of means over problems, by a bootstrap that draws whole clusters of problems.

Source: T. Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69 (2015), section 4:
the expanded percentile interval. It corrects the plain one, which is too short for few clusters, by taking wider
quantiles. C. J. Clopper and E. S. Pearson, Biometrika 26 (1934), bound a share where no problem, or every one, counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 4000
_SEED = 20_240_601
#: numbers drawn at once
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% interval.

    Attributes:
      value: None where there was no problem to average over.
      low, high: None where there are fewer than two clusters: nothing is known of the spread.
      num_problems: the mean is over.
      num_clusters: that were drawn from; the number of problems where none share a source.
    """

    value: float | None
    low: float | None
    high: float | None
    num_problems: int
    num_clusters: int


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, share: bool = False, seed: int = _SEED
) -> Estimate:
    """Mean of one number per problem and its 95% interval.

    Args:
      values: finite, one per problem.
      clusters: of each problem; those with an equal one are drawn together. None: each problem is one of its own.
      share: the numbers are in [0, 1]; so is the interval, and it is exact where all of them are 0 or all are 1.
      seed: of the draws; the same numbers give the same interval.
    """
    given = np.asarray(values, np.float64)
    if not given.size:
        return Estimate(None, None, None, 0, 0)
    sums, counts = cluster_sums(given, clusters)
    value, number = float(given.mean()), len(sums)
    if number < 2:
        return Estimate(value, None, None, given.size, number)
    if share and (given == given[0]).all() and given[0] in (0.0, 1.0):
        margin = 1.0 - ((1 - LEVEL) / 2) ** (1 / number)
        low, high = (0.0, margin) if value == 0.0 else (1.0 - margin, 1.0)
        return Estimate(value, low, high, given.size, number)
    tail = _expanded_tail(number)
    low, high = (float(q) for q in np.quantile(bootstrap_means(sums, counts, seed=seed), [tail, 1 - tail]))
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(value, min(low, value), max(high, value), given.size, number)


def cluster_sums(values: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """(sum of the values, number of them) in each cluster, float64[clusters], in the order of their first problems."""
    if clusters is None:
        return values, np.ones_like(values)
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.array([number[cluster] for cluster in clusters])
    return np.bincount(index, values, len(number)), np.bincount(index, minlength=len(number)).astype(np.float64)


def bootstrap_means(sums: np.ndarray, counts: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """float64[resamples]: the mean over all problems of as many clusters, drawn with replacement."""
    generator, number = np.random.default_rng(seed), len(sums)
    found = np.empty(resamples)
    step = max(1, _CHUNK // number)
    for start in range(0, resamples, step):
        drawn = generator.integers(number, size=(min(step, resamples - start), number))
        found[start : start + len(drawn)] = sums[drawn].sum(1) / counts[drawn].sum(1)
    return found


def _expanded_tail(number: int) -> float:
    """Tail probability to take instead of 2.5%, for `number` clusters (Hesterberg 2015, equation 9)."""
    wide = t_quantile(0.5 + LEVEL / 2, number - 1) * np.sqrt(number / (number - 1))
    return NormalDist().cdf(-float(wide))


def t_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t: closed forms for 1 and 2 degrees of freedom, else A&S 26.7.5.

    M. Abramowitz and I. Stegun, Handbook of Mathematical Functions (1964). Within 1% from 3 degrees on at 97.5%.
    """
    if degrees == 1:
        return float(np.tan(np.pi * (p - 0.5)))
    if degrees == 2:
        return float((2 * p - 1) / np.sqrt(2 * p * (1 - p)))
    z, n = NormalDist().inv_cdf(p), float(degrees)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )
