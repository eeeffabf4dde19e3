"""Rewards of several parts, each normalised within its group before they are added; float64 on the host.

One sum hides its parts: in a group, (right, no format) and (wrong, format) get the same advantage, and the part of the
widest range decides. Normalised apart, each part speaks with its weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from learner_jax.losses.advantages import Rewards, grpo


@dataclass(frozen=True)
class Part:
    """How one part of a reward counts.

    Attributes:
      weight: of the normalised part.
      clip: (low, high) bounds of the part before it is normalised; None for none.
      gate: it has no weight; an answer for which it is 0 or less has 0 in every other part.
    """

    weight: float = 1.0
    clip: tuple[float, float] | None = None
    gate: bool = False


def decoupled(values: Mapping[str, Rewards], parts: Mapping[str, Part]) -> Rewards:
    """Sum over parts of weight x (r - mean) / (std + 1e-4), with mean and deviation of the part within the group.

    GDPO, arXiv 2601.05242: with the batch-wise normalisation that follows there, this is the reward for `reinforce_pp`.
    Gates and bounds are ours.

    Args:
      values: of every part that `parts` names, one entry per answer of a group.

    Returns:
      float64[G]; its mean is 0.
    """
    size = len(next(iter(values.values())))
    is_open = np.ones(size, bool)
    for name, part in parts.items():
        if part.gate:
            is_open &= np.asarray(values[name], np.float64) > 0
    total = np.zeros(size)
    for name, part in parts.items():
        if not part.gate:
            own = np.where(is_open, np.asarray(values[name], np.float64), 0.0)
            total += part.weight * grpo(own if part.clip is None else np.clip(own, *part.clip))
    return total


def columns(answers: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, Rewards]:
    """The named parts of a group's answers as arrays; a part that an answer lacks is 0."""
    return {name: np.array([answer.get(name, 0.0) for answer in answers], np.float64) for name in names}
