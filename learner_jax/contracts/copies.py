"""Copies of checkpoints in a place that outlives the learner's host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, order=True)
class CheckpointCopy:
    """A checkpoint that was copied whole; the largest one is what a run goes on from.

    Attributes:
      life: number of the learner's life that saved it. One that was replaced may commit later steps too late.
      step: completed steps.
      number: of the commits of all copies, in order.
    """

    life: int
    step: int
    number: int


class CheckpointCopies(Protocol):
    """Copies in one place, of one run. Producer and consumer: the learner's first host.

    Every method raises `WeirError`s that are `OSError`s too when the place does not answer in time, or refuses.
    """

    address: str

    def newest(self) -> CheckpointCopy | None:
        """What a run goes on from: of the latest life, and of that the last; None if there is none."""

    def keep(self, folder: Path, *, step: int, life: int, copied: Callable[[int], None]) -> int:
        """Copies a checkpoint's folder, all or nothing, and forgets older ones; returns the bytes copied.

        Args:
          folder: no file of it changes any more.
          copied: called with the bytes of each file that was copied, from several threads.
        """

    def fetch(self, copy: CheckpointCopy, folder: Path) -> None:
        """Writes a copy's files into a folder that does not exist yet; each is compared with its hash."""
