"""A process that runs cells, one after the other, on one core; loads JAX only once it is bound to that core."""

from __future__ import annotations

import logging
import os
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from tools.study import records
from tools.study.grid import MULTI_TURN, SINGLE_TURN, Cell
from tools.study.learning_grid import LearningCell

# What `start` leaves for the jobs of this process: a pool offers no other place.
_here: dict[str, Any] = {}


def start(cores: Queue[int], out: Path, config: Path, settings: Any) -> None:
    """Binds this process to the next free core."""
    os.sched_setaffinity(0, {cores.get()})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))  # cells differ little
    logging.getLogger("absl").setLevel(logging.ERROR)  # its warnings would tear the progress bar apart
    _here.update(out=out, config=config, settings=settings)


def make_starts(seed: int) -> None:
    """Makes the supervised starts of one seed, unless they are there."""
    from tools.study import staleness

    for task in (SINGLE_TURN, MULTI_TURN):
        staleness.make_start(_here["out"], _here["config"], task, seed, accuracy=_here["settings"].start_accuracy)


def run_cell(cell: Cell) -> Cell:
    """Runs one cell of the staleness study and keeps its record."""
    from tools.study import staleness

    key = (cell.task, cell.algorithm)
    if _here.get("key") != key:  # one at a time: compiled functions of every algorithm would fill the memory
        _here["runner"] = staleness.CellRunner(_here["out"], _here["config"], *key, _here["settings"])
        _here["key"] = key
    records.keep(_here["out"], cell, _here["runner"].run(cell))
    return cell


def run_learning_cell(cell: LearningCell) -> LearningCell:
    """Runs one cell of the study of learning per step and keeps its record."""
    from tools.study import learning

    if _here.get("key") != cell.variant:
        _here["runner"] = learning.LearningRunner(_here["config"], _here["settings"], cell.variant)
        _here["key"] = cell.variant
    records.keep(_here["out"], cell, _here["runner"].run(cell))
    return cell
