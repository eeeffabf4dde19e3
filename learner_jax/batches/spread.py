"""Between answers and the sequences of a batch: an episode with branches is one answer and several sequences.

Rewards are compared between answers. Every sequence of one then has its answer's advantage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner_jax.contracts import Trajectory, branches_of


class Spread:
    """Which sequences [B] belong to which answer [A].

    Attributes:
      sequences: each as a trajectory of its own.
    """

    def __init__(self, answers: Sequence[Trajectory]) -> None:
        parts = [branches_of(answer) for answer in answers]
        self.sequences = [part for of_answer in parts for part in of_answer]
        self._counts = np.array([len(of_answer) for of_answer in parts], np.int64)
        self._starts = np.cumsum(self._counts) - self._counts

    def given(self, values: np.ndarray) -> np.ndarray:
        """[A, ...] -> [B, ...]: the value of each sequence's answer."""
        return values if len(values) == len(self.sequences) else np.repeat(values, self._counts, axis=0)

    def reduced(self, values: np.ndarray, by: np.ufunc = np.add) -> np.ndarray:
        """[B] -> [A]: the sum over each answer's sequences, or what another function makes of them."""
        if len(values) == len(self._counts):
            return values
        found: np.ndarray = by.reduceat(values, self._starts)
        return found

    def joined(self, values: np.ndarray, answer: int) -> np.ndarray:
        """[B, T] -> [N]: by token of one answer, whose sequences stand one after the other."""
        return np.concatenate([values[row, :length] for row, length in self._rows(answer)])

    def place(self, values: np.ndarray, answer: int, into: np.ndarray) -> None:
        """Writes the values [N] of one answer's tokens into rows [B, T]; the inverse of `joined`."""
        start = 0
        for row, length in self._rows(answer):
            into[row, :length] = values[start : start + length]
            start += length

    def _rows(self, answer: int) -> list[tuple[int, int]]:
        """(row, tokens) of each sequence."""
        first = int(self._starts[answer])
        return [(row, len(self.sequences[row].tokens)) for row in range(first, first + int(self._counts[answer]))]
