"""Two results on the same problems: difference of means, tests per problem, and the least difference to be seen.

Sources: P. Good, Permutation, Parametric and Bootstrap Tests of Hypotheses (2005), section 3.7 (signs flipped at
random); Q. McNemar, Psychometrika 12 (1947), in its exact binomial form; J. Cohen, Statistical Power Analysis (1988),
section 2.2 (the least difference that a paired test finds); E. Miller, Adding Error Bars to Evals, arXiv 2411.00640.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tools.evaluation.intervals import Estimate, cluster_sums, mean_interval

#: Up to so many clusters all sign flips are tried, 2^n; above, so many random ones.
_EXACT_CLUSTERS, _FLIPS = 14, 20_000
_SEED = 20_240_602
_ALPHA, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Difference:
    """The second result less the first, over the problems of both.

    Attributes:
      estimate: mean difference with its 95% interval.
      p_value: of the permutation test that the two are alike; None with fewer than two clusters.
      minimum_detectable: least true difference that a test at 5% would find with 80% power on these problems; None
        with fewer than two clusters, or where no problem differs.
    """

    estimate: Estimate
    p_value: float | None
    minimum_detectable: float | None


@dataclass(frozen=True)
class Flips:
    """Problems that pass in one result only.

    Attributes:
      p_value: of McNemar's exact test, two-sided.
    """

    num_lost: int
    num_gained: int
    p_value: float


def paired_difference(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Difference:
    """Compares two numbers per problem, in the same order.

    Raises:
      ValueError: the lengths differ.
    """
    differences = np.array([b - a for a, b in zip(first, second, strict=True)], np.float64)
    estimate = mean_interval(differences.tolist(), clusters)
    if estimate.num_clusters < 2:
        return Difference(estimate, None, None)
    sums, _ = cluster_sums(differences, clusters)
    # Without any difference there is no spread to tell what could be detected.
    least = minimum_detectable(differences, clusters) if differences.any() else None
    return Difference(estimate, _sign_flip_p(sums), least)


def mcnemar(num_lost: int, num_gained: int) -> Flips:
    """McNemar's exact test: each of the flipped problems was as likely to be lost as gained."""
    flipped, fewer = num_lost + num_gained, min(num_lost, num_gained)
    below = sum(math.comb(flipped, i) for i in range(fewer + 1))
    return Flips(num_lost, num_gained, min(1.0, 2 * below / 2**flipped))


def minimum_detectable(differences: np.ndarray, clusters: Sequence[Hashable] | None = None) -> float:
    """(z of 97.5% + z of 80%) times the standard error of the mean difference, clustered (arXiv 2411.00640, eq. 4)."""
    sums, counts = cluster_sums(differences, clusters)
    number = len(sums)
    spread = sums - counts * differences.mean()
    error = math.sqrt(number / (number - 1) * float(spread @ spread)) / len(differences)
    normal = NormalDist()
    return (normal.inv_cdf(1 - _ALPHA / 2) + normal.inv_cdf(POWER)) * error


def _sign_flip_p(sums: np.ndarray) -> float:
    """Two-sided p-value of the sum of differences, whose sign could as well be the other in each cluster."""
    observed, slack = abs(float(sums.sum())), 1e-12 * float(np.abs(sums).sum())
    if len(sums) <= _EXACT_CLUSTERS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= observed - slack).mean())
    generator, as_far = np.random.default_rng(_SEED), 0
    for _ in range(_FLIPS // 200):
        signs = generator.integers(2, size=(200, len(sums))) * 2.0 - 1.0
        as_far += int((np.abs(signs @ sums) >= observed - slack).sum())
    return (1 + as_far) / (1 + _FLIPS)  # the observed one is a flip, too: never 0
