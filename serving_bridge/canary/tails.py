"""Quantiles by exceedances: how many answers are beyond a bar that was fixed before they came.

Let q be any bar that is fixed before a look's answers come, T_s and T_c the times of stable and canary, m the margin.
A canary whose tail is at most m slower has P(T_c > (1 + m) q) <= P(T_s > q) for every q. So its share of answers beyond
(1 + m) q is compared with stable's share beyond q, as any two rates are: by bounds that hold at all looks
(`serving_bridge.canary.evidence`). The bar depends on the past alone, so the processes there stay supermartingales
while it moves. No distribution is assumed, and no quantile is estimated for the test: a bar that is far from the
quantile costs power, and never the error rate. Confidence sequences for quantiles (Howard, Ramdas, Bernoulli 28(3),
2022) bound each arm's quantile by the same exceedances; comparing two would split the error rate, and have no use of
the margin.

The bar is stable's quantile in the look before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

#: Answers of stable that a bar is taken from at least.
MIN_ANSWERS = 100


def bar_of(values: Sequence[float], quantile: float) -> float | None:
    """The quantile of a look's values, for the next look; None where they are too few."""
    return float(np.quantile(np.asarray(values), quantile)) if len(values) >= MIN_ANSWERS else None


def exceeds(value: object, bar: float | None, margin: float, arm: Literal["canary", "stable"]) -> float | None:
    """1 for a value beyond the bar, which is by the margin higher for the canary; None without a bar or a value."""
    if bar is None or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value > bar * (1 + margin if arm == "canary" else 1.0))
