"""Bounds on a mean that hold at every look at once, from sums alone.

Each bound comes from nonnegative supermartingales that begin at 1. By Ville's inequality one of them reaches 1/alpha
with a probability of at most alpha, however often and whenever anybody looks. The supermartingales are those of Howard,
Ramdas, McAuliffe, Sekhon (arXiv 1810.08240):

    rates   exp(l S - n log(1 - m + m e^l))              sub-Bernoulli; l > 0
    means   exp(l (S - n m) - psi(l) V)                  empirical Bernstein, theorem 4; 0 < l < 1

of n values in [0, 1] with sum S; psi(l) = -log(1 - l) - l; V sums (x - g)^2, where each g was fixed before x was seen.
Of each kind a finite mixture over l is taken, which is again such a process (there, section 3.3).

The mean m may change with time: the bounds then hold for the mean of the m of the values so far. For means this is
linear. For rates, sum_i log(1 - m_i + m_i e^l) <= n log(1 - m + m e^l) with m = mean(m_i): the logarithm is concave.
Values may depend on the past in any other way, as long as that mean is the one that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["rate", "mean"]
Floats = NDArray[np.float64]

_NEWTON_STEPS = 5
#: l of the mixtures: geometric, for from a handful to some ten million values
_RATE_GRID = 12.0 * 0.58 ** np.arange(14)
_MEAN_GRID = 0.95 * 0.58 ** np.arange(12)
_PSI = -np.log1p(-_MEAN_GRID) - _MEAN_GRID


@dataclass(frozen=True)
class Sums:
    """What is kept of values in [0, 1].

    Attributes:
      n: how many.
      total: their sum.
      variation: sum of (x - g)^2, where the guess g was fixed before x was seen.
    """

    n: float = 0.0
    total: float = 0.0
    variation: float = 0.0

    def plus(self, n: float, total: float, squares: float, *, guess: float) -> Sums:
        """With `n` more values of this sum and sum of squares, which were seen after `guess` was fixed."""
        variation = max(squares - 2 * guess * total + n * guess * guess, 0.0)
        return Sums(self.n + n, self.total + total, self.variation + variation)

    @property
    def mean(self) -> float:
        """NaN where there is nothing."""
        return self.total / self.n if self.n else float("nan")


def log_evidence(kind: Kind, n: Floats, total: Floats, variation: Floats, mean: Floats) -> Floats:
    """Logarithm of the evidence that the true mean is above `mean`; all arrays have one shape, and so has the result.

    It falls with `mean`. Where the true mean is at most `mean`, it ever exceeds log(1/alpha) with probability <= alpha.
    """
    return _evidence_and_slope(kind, n, total, variation, mean)[0]


def lower_bounds(kind: Kind, n: Floats, total: Floats, variation: Floats, alpha: Floats) -> Floats:
    """Bounds below which each true mean is with probability <= alpha, at all looks together; 0 if nothing is known.

    The evidence is convex in the mean. Newton's method, from where the best part of the mixture alone is enough, comes
    to the bound from below: each step is a valid bound.
    """
    needed = np.log(1 / alpha)
    found = np.clip(_best_part(kind, n, total, variation, needed), 0.0, 1.0)
    for _ in range(_NEWTON_STEPS):
        evidence, slope = _evidence_and_slope(kind, n, total, variation, found)
        step = np.divide(evidence - needed, slope, out=np.zeros_like(found), where=slope > 0)
        found = np.clip(found + step, 0.0, 1.0)
    return found


def _evidence_and_slope(kind: Kind, n: Floats, total: Floats, variation: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """`log_evidence`, and by how much it falls for each unit of the mean."""
    n, total, variation, mean = (np.asarray(each, dtype=np.float64)[..., None] for each in (n, total, variation, mean))
    if kind == "rate":
        growth = np.expm1(_RATE_GRID)
        exponents = _RATE_GRID * total - n * np.log1p(mean * growth)
        slopes = n * growth / (1 + mean * growth)
    else:
        exponents = _MEAN_GRID * (total - n * mean) - _PSI * variation
        slopes = _MEAN_GRID * n
    top = exponents.max(axis=-1, keepdims=True)
    parts = np.exp(exponents - top)
    sums = parts.sum(axis=-1)
    evidence = top[..., 0] + np.log(sums / parts.shape[-1])
    return evidence, (parts * slopes).sum(axis=-1) / sums


def _best_part(kind: Kind, n: Floats, total: Floats, variation: Floats, needed: Floats) -> Floats:
    """The largest mean at which one part of the mixture alone, at its weight, reaches the needed evidence."""
    known = np.maximum(np.asarray(n, dtype=np.float64), 1.0)[..., None]
    total, variation, needed = (np.asarray(each, dtype=np.float64)[..., None] for each in (total, variation, needed))
    if kind == "rate":
        exponents = (_RATE_GRID * total - needed - np.log(len(_RATE_GRID))) / known
        return (np.expm1(exponents) / np.expm1(_RATE_GRID)).max(axis=-1)
    paid = (needed + np.log(len(_MEAN_GRID)) + _PSI * variation) / _MEAN_GRID
    return ((total - paid) / known).max(axis=-1)


def upper_bounds(kind: Kind, n: Floats, total: Floats, variation: Floats, alpha: Floats) -> Floats:
    """As `lower_bounds`, from above."""
    return 1 - lower_bounds(kind, n, n - total, variation, alpha)
