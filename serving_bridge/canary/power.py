"""How many conversations a comparison needs, and how long they take to come, before it begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from serving_bridge.canary.errors import CanaryError
from serving_bridge.canary.evidence import Kind, lower_bounds, upper_bounds

_MOST = 1e12


@dataclass(frozen=True)
class Question:
    """What is to be told apart, on a scale of 0 to 1.

    Attributes:
      baseline: stable's mean.
      deviation: standard deviation of a conversation's value; for rates it follows from the mean.
      effect: by how much the canary is worse.
      margin: how much is allowed.
      share: of the conversations that the canary answers.

    Raises:
      CanaryError: a number is out of its range.
    """

    kind: Kind
    baseline: float
    deviation: float
    effect: float
    margin: float
    share: float

    def __post_init__(self) -> None:
        inside = 0 <= self.baseline <= 1 and 0 <= self.baseline + self.effect <= 1
        if not inside or not 0 < self.share < 1 or not 0 < self.margin < 1 or not 0 <= self.deviation <= 0.5:
            raise CanaryError(
                f"baseline {self.baseline:g}, effect {self.effect:g}, margin {self.margin:g}, share {self.share:g}, "
                f"deviation {self.deviation:g}: expected means and margin within the metric's range, a share between 0 "
                f"and 1, and a deviation of at most half the range"
            )

    def variance(self, mean: float) -> float:
        return mean * (1 - mean) if self.kind == "rate" else self.deviation**2


def fixed_size(question: Question, alpha: float, power: float) -> float:
    """Conversations of both arms for one look at the end, by the normal approximation.

    n = (z_(1-alpha) + z_power)^2 (v_c / s + v_s / (1 - s)) / (effect - margin)^2, one-sided, with v the variances and s
    the share (Chow, Shao, Wang 2008, section 3.2, unequal arms). Infinite where effect and margin are equal.
    """
    distance = abs(question.effect - question.margin)
    if not distance:
        return math.inf
    z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)
    canary, stable = question.variance(question.baseline + question.effect), question.variance(question.baseline)
    return z * z * (canary / question.share + stable / (1 - question.share)) / distance**2


def looking_size(question: Question, alpha: float) -> float:
    """Conversations of both arms until bounds that hold at all looks decide, where means are as they are expected.

    About half of all comparisons need fewer. Infinite where nothing would decide.
    """
    low, high = 1.0, 2.0
    while not _decides(question, alpha, high):
        low, high = high, high * 2
        if high > _MOST:
            return math.inf
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _decides(question, alpha, middle) else (middle, high)
    return high


def _decides(question: Question, alpha: float, size: float) -> bool:
    """Whether expected sums of so many conversations put the effect on its side of the margin."""
    n = np.array([size * question.share, size * (1 - question.share)])
    means = np.array([question.baseline + question.effect, question.baseline])
    variation = n * np.array([question.variance(float(mean)) for mean in means])
    level = np.full(2, alpha / 2)
    lows = lower_bounds(question.kind, n, n * means, variation, level)
    highs = upper_bounds(question.kind, n, n * means, variation, level)
    if question.effect > question.margin:
        return bool(lows[0] - highs[1] > question.margin)
    return bool(highs[0] - lows[1] < question.margin)
