"""Metrics of a step from those of its optimizer updates; NaN, which logs write as null, stands for "not measured"."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Of every update, whether or not it had anything to learn from.
_OF_ANY_UPDATE = ("grad_norm", "shared_prompts")


def merged(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of a batch from those of its updates: sums and counts add up, maxima stay, the rest are means.

    A mean is over the updates that had tokens to learn from: the sum over no token at all is no KL or loss of 0.
    """
    found = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name.endswith("_max") or name in ("skipped", "empty"):
            found[name] = max(values)
        elif name.endswith(("_sum", "_tokens", "_flops", "_s")):
            found[name] = sum(values)
        else:
            measured = [part[name] for part in parts if name in _OF_ANY_UPDATE or not part["empty"]]
            found[name] = sum(measured) / len(measured) if measured else math.nan
    return found


def with_explained_variance(metrics: dict[str, float]) -> dict[str, float]:
    """Turns the mean squared target into the share of the targets' variance that the values explain.

    NaN where all targets are the same: no share of nothing is explained.
    """
    square = metrics.get("value_target_square")
    if square is None:
        return metrics
    variance = square - metrics["value_target"] ** 2
    explained = 1.0 - 2.0 * metrics["value_loss"] / variance if variance > 0 else math.nan
    return {n: v for n, v in metrics.items() if n != "value_target_square"} | {"value_explained_variance": explained}
