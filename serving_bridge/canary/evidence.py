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

#: The bounds are known to 2^-22, from the safe side.
_BISECTIONS = 22
#: l of the mixtures: geometric, for from a handful to some ten million values
_RATE_GRID = 12.0 * 0.58 ** np.arange(14)
_MEAN_GRID = 0.95 * 0.58 ** np.arange(12)


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
    n, total, variation, mean = (np.asarray(each, dtype=np.float64)[..., None] for each in (n, total, variation, mean))
    if kind == "rate":
        exponents = _RATE_GRID * total - n * np.log1p(mean * np.expm1(_RATE_GRID))
    else:
        psi = -np.log1p(-_MEAN_GRID) - _MEAN_GRID
        exponents = _MEAN_GRID * (total - n * mean) - psi * variation
    top = exponents.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(exponents - top).mean(axis=-1, keepdims=True)))[..., 0]


def lower_bounds(kind: Kind, n: Floats, total: Floats, variation: Floats, alpha: Floats) -> Floats:
    """Bounds below which each true mean is with probability <= alpha, at all looks together; 0 if nothing is known."""
    low, high = np.zeros_like(n), np.ones_like(n)
    needed = np.log(1 / alpha)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        excluded = log_evidence(kind, n, total, variation, middle) >= needed
        low, high = np.where(excluded, middle, low), np.where(excluded, high, middle)
    return low


def upper_bounds(kind: Kind, n: Floats, total: Floats, variation: Floats, alpha: Floats) -> Floats:
    """As `lower_bounds`, from above."""
    return 1 - lower_bounds(kind, n, n - total, variation, alpha)
