"""Which runs the staleness study is made of; free of JAX, so that workers can choose their core before they load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SINGLE_TURN, MULTI_TURN = "one turn", "two turns"
ALGORITHMS = (
    "naive PPO",
    "decoupled PPO",
    "truncated IS",
    "CISPO",
    "V-trace by turn",
    "V-trace by token",
    "V-trace by turn, PPO clip",
)
STALENESS = (0, 2, 4, 8, 16)


@dataclass(frozen=True)
class Cell:
    """One training run; cells of one task and seed start from the same weights.

    Attributes:
      staleness: versions that every answer lags behind the learner.
    """

    task: str
    algorithm: str
    staleness: int
    seed: int


@dataclass(frozen=True)
class StudySettings:
    """What every cell has in common.

    Attributes:
      steps: optimizer steps, each on groups x group_size answers.
      start_accuracy: greedy accuracy at which the supervised start ends.
      evaluate_every: steps between greedy evaluations on held-out dialogs; the last three are averaged.
    """

    steps: int = 100
    groups: int = 32
    group_size: int = 8
    learning_rate: float = 1e-4
    warmup_steps: int = 10
    start_accuracy: float = 0.6
    evaluate_every: int = 10
    num_heldout: int = 400


def cells(seeds: int, staleness: Sequence[int] = STALENESS) -> list[Cell]:
    """The whole grid, algorithm by algorithm; the second task for V-trace alone, at every other staleness."""
    rows = [(SINGLE_TURN, name, staleness) for name in ALGORITHMS]
    rows += [(MULTI_TURN, name, staleness[::2]) for name in ALGORITHMS if name.startswith("V-trace")]
    return [Cell(task, name, lag, seed) for task, name, lags in rows for seed in range(seeds) for lag in lags]
