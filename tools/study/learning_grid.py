"""Which runs the study of learning per step is made of; free of JAX, so that workers can choose their core first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: as in TRL and in `learner_jax.losses.advantages`
_EPS = 1e-4


def sample_deviation(rewards: np.ndarray) -> np.ndarray:
    """(r - mean) / (std + 1e-4) within a group, sample standard deviation, as TRL has it: an advantage estimator."""
    centered: np.ndarray = rewards - rewards.mean()
    if len(rewards) < 2:
        return centered
    return centered / (rewards.std(ddof=1) + _EPS)


@dataclass(frozen=True)
class Variant:
    """One way to learn.

    Attributes:
      lag: versions that every answer is older than the learner.
      overrides: `section.key=value` strings on top of the demo's configuration.
    """

    lag: int = 0
    overrides: tuple[str, ...] = ()


SYNCHRONOUS = "synchronous"
VARIANTS: Mapping[str, Variant] = {
    SYNCHRONOUS: Variant(),
    "two versions old": Variant(lag=2),
    "one version old": Variant(lag=1),
    "two versions old, no clip": Variant(
        lag=2, overrides=("learner.loss.policy.clip_low=1", "learner.loss.policy.clip_high=inf")
    ),
    "synchronous, half the rate": Variant(overrides=("learner.optimizer.learning_rate=1e-4",)),
    "synchronous, sample deviation": Variant(
        overrides=(f"learner.loss.advantage.estimator={__name__}:sample_deviation",)
    ),
}


@dataclass(frozen=True)
class LearningCell:
    """One training run; cells of one seed have the same prompts in the same order, and the same held-out problems."""

    variant: str
    seed: int


@dataclass(frozen=True)
class LearningSettings:
    """What every cell has in common.

    Attributes:
      model: Hugging Face folder of the start weights.
      steps: optimizer steps, each on the batch that the demo's configuration asks for.
      evaluate_every: steps between greedy evaluations on held-out problems.
    """

    model: str
    steps: int = 100
    evaluate_every: int = 20
    num_heldout: int = 400


def learning_cells(seeds: int, variants: Sequence[str] = tuple(VARIANTS)) -> list[LearningCell]:
    """The whole grid, variant by variant."""
    return [LearningCell(variant, seed) for variant in variants for seed in range(seeds)]
