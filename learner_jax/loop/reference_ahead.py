"""The frozen reference's log-probs, computed while the step's last groups are still being sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner_jax.batches import Reference, Sequences, sequences
from learner_jax.contracts import Trajectory

#: Groups are computed together until they fill this share of a microbatch: a plan rarely fills rows to the last slot.
_FILL = 0.9


class ReferenceAhead:
    """Collects a step's groups as they arrive, and has their log-probs when the batch is whole.

    Which groups are computed together depends on their order and lengths alone, not on when they come: the same batch
    gives the same bits.

    Args:
      logprobs: float32[B, T] of sequences under the reference.
      microbatch_tokens: slots of one microbatch; infinite to compute the whole batch at once.
    """

    def __init__(self, logprobs: Reference, *, sequence_length: int, microbatch_tokens: float):
        self._logprobs = logprobs
        self._sequence_length = sequence_length
        self._room = _FILL * microbatch_tokens
        self._pending: list[Sequence[Trajectory]] = []
        self._pending_tokens = 0
        self._rows: list[Sequences] = []
        self._parts: list[np.ndarray] = []

    def add(self, groups: Sequence[Sequence[Trajectory]]) -> None:
        """Takes groups in the order in which the batch will hold them; computes every microbatch that is full."""
        for group in groups:
            tokens = sum(len(t.tokens) for t in group)
            if self._pending and self._pending_tokens + tokens > self._room:
                self._compute()
            self._pending.append(group)
            self._pending_tokens += tokens

    def result(self) -> tuple[Sequences, Reference]:
        """The sequences of all groups so far, and their log-probs; the next `add` begins a new batch."""
        self._compute()
        rows, logprobs = Sequences.joined(self._rows), np.concatenate(self._parts)
        self._rows, self._parts = [], []
        return rows, lambda rows: logprobs[: len(rows.tokens)]

    def _compute(self) -> None:
        if self._pending:
            rows = sequences(self._pending, sequence_length=self._sequence_length)
            self._rows.append(rows)
            self._parts.append(self._logprobs(rows))
        self._pending, self._pending_tokens = [], 0
