"""In which order train problems are asked: every epoch another, or from easy to hard; known for any index at once."""

from __future__ import annotations

import numpy as np

from rewards.data.orders import Permutation, stable_hash
from rewards.settings import CurriculumSettings

_REMEMBERED = 64


class TrainOrder:
    """The place of the problem that has an index; each epoch has every place once.

    Args:
      curriculum: with a column, problems are asked by difficulty: in stages, or else from easy to hard in each epoch,
        those of one difficulty in a seeded order.
      difficulties: of each place; a curriculum needs them.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        curriculum: CurriculumSettings | None = None,
        difficulties: np.ndarray | None = None,
    ) -> None:
        self._size, self._seed = size, seed
        self._permutations: dict[tuple[object, ...], Permutation] = {}
        self._stages: list[tuple[int, np.ndarray]] = []
        self._sorted: np.ndarray | None = None
        self._bounds = np.array([0, size])
        if curriculum is None or difficulties is None or not curriculum.column or not size:
            return
        if curriculum.stages:
            self._stages = list(_stages(difficulties, curriculum))
            return
        self._sorted = np.argsort(difficulties, kind="stable")
        rises = np.flatnonzero(np.diff(difficulties[self._sorted])) + 1
        self._bounds = np.concatenate([[0], rises, [size]])

    def place(self, index: int) -> int:
        """From 0 to below the size; `index` is 0 or above."""
        for number, (length, places) in enumerate(self._stages):
            if index < length:
                epoch, position = divmod(index, len(places))
                return int(places[self._shuffled(len(places), "stage", number, epoch)[position]])
            index -= length
        epoch, position = divmod(index, self._size)
        if self._sorted is None:
            return self._shuffled(self._size, epoch)[position]
        group = int(np.searchsorted(self._bounds, position, side="right")) - 1
        first, end = int(self._bounds[group]), int(self._bounds[group + 1])
        within = self._shuffled(end - first, "group", group, epoch)[position - first]
        return int(self._sorted[first + within])

    def _shuffled(self, size: int, *key: object) -> Permutation:
        found = self._permutations.get((size, *key))
        if found is None:
            found = Permutation(size, stable_hash("train", self._seed, *key))
            # Prompts are drawn in order: few epochs are looked at in turn. A race makes the same once more.
            self._permutations = {**dict(list(self._permutations.items())[-_REMEMBERED:]), (size, *key): found}
        return found


def _stages(difficulties: np.ndarray, curriculum: CurriculumSettings) -> list[tuple[int, np.ndarray]]:
    """(prompts, places) of each stage; one without a problem is left out."""
    found = []
    for most in curriculum.stages:
        places = np.flatnonzero(difficulties <= most)
        if len(places):
            found.append((curriculum.stage_prompts or len(places), places))
    return found
