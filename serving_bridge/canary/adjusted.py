"""A difference between arms with less noise: by what was known before (CUPED), or by strata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from serving_bridge.canary.errors import CanaryError

_MIN_VALUES = 10


@dataclass(frozen=True)
class Difference:
    """Canary less stable.

    Attributes:
      low, high: 95% interval by the normal approximation, for one look.
      explained: share of the variance of the plain difference that is gone.
    """

    value: float
    low: float
    high: float
    explained: float


@dataclass(frozen=True)
class Value:
    """One conversation or user.

    Attributes:
      before: the same metric before the comparison began; None where it is not known.
      stratum: a group that was fixed before.
    """

    is_canary: bool
    value: float
    before: float | None = None
    stratum: str = ""


def plain(values: Sequence[Value]) -> Difference:
    """The difference of means. Raises `CanaryError` for fewer than ten values of an arm."""
    canary, stable = _arms(values)
    return _difference(_mean(canary), _mean(stable), _error(canary) + _error(stable), None)


def cuped(values: Sequence[Value]) -> Difference:
    """The difference of y - theta (x - mean x), theta = cov(x, y) / var(x) over both arms (Deng et al. 2013, eq. 4).

    Raises:
      CanaryError: a value has no `before`, all are the same, or there are fewer than ten of an arm.
    """
    canary, stable = _arms(values)
    if any(one.before is None for one in values):
        raise CanaryError("CUPED needs the value before of each: some have none; leave these out, or compare plainly")
    before = np.array([one.before for one in values], dtype=np.float64)
    after = np.array([one.value for one in values])
    spread = before.var()
    if spread == 0:
        raise CanaryError("CUPED needs values before that differ: all are the same")
    theta = ((before - before.mean()) * (after - after.mean())).mean() / spread
    adjusted = after - theta * (before - before.mean())
    chosen = np.array([one.is_canary for one in values])
    new = adjusted[chosen], adjusted[~chosen]
    return _difference(_mean(new[0]), _mean(new[1]), _error(new[0]) + _error(new[1]), _error(canary) + _error(stable))


def stratified(values: Sequence[Value]) -> Difference:
    """The mean of the strata's differences, weighted by their sizes (Miratrix, Sekhon, Yu 2013, eq. 4).

    Raises:
      CanaryError: a stratum has fewer than two values of an arm, or an arm fewer than ten.
    """
    canary, stable = _arms(values)
    strata = sorted({one.stratum for one in values})
    total, error = 0.0, 0.0
    for stratum in strata:
        arms = [
            np.array([one.value for one in values if one.stratum == stratum and one.is_canary == is_canary])
            for is_canary in (True, False)
        ]
        if min(map(len, arms)) < 2:
            raise CanaryError(f"stratum {stratum!a}: expected two values or more of each arm; join it with another")
        weight = sum(map(len, arms)) / len(values)
        total += weight * (_mean(arms[0]) - _mean(arms[1]))
        error += weight**2 * (_error(arms[0]) + _error(arms[1]))
    return _difference(total, 0.0, error, _error(canary) + _error(stable))


def _arms(values: Sequence[Value]) -> tuple[np.ndarray, np.ndarray]:
    canary = np.array([one.value for one in values if one.is_canary], dtype=np.float64)
    stable = np.array([one.value for one in values if not one.is_canary], dtype=np.float64)
    if min(len(canary), len(stable)) < _MIN_VALUES:
        raise CanaryError(
            f"{len(canary)} values of the canary and {len(stable)} of stable: expected at least {_MIN_VALUES} of each"
        )
    return canary, stable


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _error(values: np.ndarray) -> float:
    """Squared standard error of the mean."""
    return float(values.var(ddof=1) / len(values))


def _difference(canary: float, stable: float, error: float, plain_error: float | None) -> Difference:
    half = NormalDist().inv_cdf(0.975) * error**0.5
    value = canary - stable
    return Difference(value, value - half, value + half, 1 - error / plain_error if plain_error else 0.0)
