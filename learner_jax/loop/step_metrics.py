"""Metrics of a step from those of its optimizer updates; NaN, which logs write as null, stands for "not measured"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from learner_jax.batches import Plan
from learner_jax.hosts import Hosts
from learner_jax.runtime import WeirError

#: Fewer older tokens than this prove nothing when all their ratios are 1.
_HONEST_FROM_TOKENS = 16
#: Of every update, whether or not it had anything to learn from.
_OF_ANY_UPDATE = ("grad_norm", "shared_prompts")


NOT_FINITE = (
    "the loss or its gradient was not finite in 3 steps in a row; parameters are those before them: "
    "lower learner.optimizer.learning_rate or look at the rewards"
)


class TrainingError(WeirError, RuntimeError):
    """Training can't go on soundly."""


def row_counts(plan: Plan, model_flops: float, hosts: Hosts) -> dict[str, float]:
    """Slots, real tokens and FLOPs of an update, over all hosts.

    Args:
      model_flops: of this host's rows.
    """
    slots = plan.sources.size
    every = hosts.gather([slots, slots * plan.real_share, model_flops], "tokens in rows")
    sums = np.sum(every, axis=0).tolist()
    return dict(zip(("slot_tokens", "real_tokens", "model_flops"), sums, strict=True))


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


def require_honest_ratios(metrics: Mapping[str, float], *, step: int, changed_version: int) -> None:
    """Refuses a batch whose older tokens all have an importance ratio of exactly 1.

    Args:
      metrics: of the batch.
      step: that it is for.
      changed_version: version since which the weights have changed; older tokens are those of versions before.

    Raises:
      TrainingError: they all have.
    """
    lagged = round(metrics["lagged_tokens"])
    if lagged >= _HONEST_FROM_TOKENS and metrics["lagged_log_ratio_max"] == 0.0:
        raise TrainingError(
            f"step {step}: {lagged} tokens of versions older than {changed_version} have an "
            f"importance ratio of exactly 1, although the weights have changed since: behavior_logprobs are not "
            f"those of the policy that sampled the tokens; look at what fills them on the rollout side"
        )
