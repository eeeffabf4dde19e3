"""What the benchmark of isolation found in each block, and what that comes to."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.table import Table

from tools.bench.timing import Spread, spread

ALONE, AGAIN, WITHIN, NEIGHBOUR, LEARNER, RESTARTS, ROLLOUTS, AS_USERS = (
    "alone", "alone again", "within quota", "neighbour", "learner", "learner restarts", "rollouts", "as users",
)  # fmt: skip
SIDES = (ALONE, AGAIN, WITHIN, NEIGHBOUR, LEARNER, RESTARTS, ROLLOUTS, AS_USERS)
_REDRAWN = 1000
_QUIET_CORES = 0.1


@dataclass(frozen=True)
class Block:
    """One side in one round.

    Attributes:
      answers_ms: of the user, each from its request to its end.
      late_ms: 95th percentile of how late the program that asks was.
      gateway_share: of the first core that the gateway took.
      others_cores, others_first: that programs took which are no part of the benchmark; of the first core alone.
      admitted, refused: requests of the neighbour.
      training_per_s: tokens sampled for training.
    """

    answers_ms: tuple[float, ...]
    late_ms: float
    gateway_share: float
    others_cores: float = 0.0
    others_first: float = 0.0
    admitted: int = 0
    refused: int = 0
    training_per_s: float = 0.0


def _is_quiet(block: Block) -> bool:
    return block.others_cores <= _QUIET_CORES


def _quiet(blocks: Mapping[str, Block], *names: str) -> list[Block]:
    """Blocks of a round beside these sides that nobody else disturbed."""
    return [blocks[name] for name in names if name in blocks and _is_quiet(blocks[name])]


def _answers(blocks: Mapping[str, Block], *names: str) -> list[float]:
    """Of the quiet blocks of a round, ms; of all where there is none."""
    chosen = _quiet(blocks, *names) or [blocks[name] for name in names if name in blocks]
    return [ms for block in chosen for ms in block.answers_ms]


def ratio_of(rounds: Sequence[Mapping[str, Block]], name: str) -> Spread:
    """The 95th percentile beside a side over that alone; its range is that over rounds that are drawn anew.

    The machine is not equally quick in all rounds, so both are of the same ones: where neither was disturbed, if any.
    """
    alone = (ALONE,) if name in (ALONE, AGAIN) else (ALONE, AGAIN)
    undisturbed = [blocks for blocks in rounds if _quiet(blocks, name) and _quiet(blocks, *alone)]
    found = [(_answers(blocks, name), _answers(blocks, *alone)) for blocks in undisturbed or rounds]

    def quotient(chosen: Sequence[tuple[list[float], list[float]]]) -> float:
        beside, by_itself = ([ms for pair in chosen for ms in pair[place]] for place in (0, 1))
        return float(np.percentile(beside, 95) / np.percentile(by_itself, 95))

    draws = random.Random(0)
    drawn = spread([quotient(draws.choices(found, k=len(found))) for _ in range(_REDRAWN)])
    return replace(drawn, median=quotient(found))


def table_of(rounds: Sequence[Mapping[str, Block]]) -> Table:
    """A row for each side; times of quiet blocks, and medians of blocks."""
    table = Table("side", "p50, ms", "p95, ms", "p95 over alone", "answers", box=None)
    for heading in ("left out", "others", "on first", "late, ms", "gateway", "admitted", "refused", "training/s"):
        table.add_column(heading)
    for name in rounds[0]:
        of_side = [blocks[name] for blocks in rounds]
        ms = [ms for block in [block for block in of_side if _is_quiet(block)] or of_side for ms in block.answers_ms]
        times = (f"{value:.0f}" for value in np.percentile(ms, [50, 95]))
        counts = len(ms), sum(not _is_quiet(block) for block in of_side)
        shares = [(block.others_cores, block.others_first, block.late_ms, block.gateway_share) for block in of_side]
        medians = (f"{value:.2g}" for value in np.median(shares, axis=0))
        neighbours = sum(block.admitted for block in of_side), sum(block.refused for block in of_side)
        training = f"{np.median([block.training_per_s for block in of_side]):.0f}"
        cells = (*times, ratio_of(rounds, name).show(), *counts, *medians, *neighbours, training)
        table.add_row(name, *map(str, cells))
    return table
