"""How the sequences of a batch lie in rows of fixed length: segments, positions, and who precedes whom."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Int

#: Segment of padding, and predecessor of a token without one.
NONE = -1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layout:
    """One entry per token slot; a pytree of NumPy arrays on the host, of JAX's in the train step.

    A segment is a run of tokens of one sequence in one row: a whole sequence, or, where a prompt is shared, the prompt
    alone or one answer alone. A token sees the tokens of its own segment and of that segment's prefix which stand at or
    before its own slot.

    Attributes:
      segments: number of the segment within its row, from 0; `NONE` on padding.
      prefixes: number of the segment that is its prefix; the segment's own number where it has none; `NONE` on padding.
      positions: position in the sequence, from 0; 0 on padding.
      predecessors: slot of the sequence's token before this one; `NONE` on a sequence's first token and on padding.
    """

    segments: Int[Array, "B T"]
    prefixes: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    predecessors: Int[Array, "B T"]


def plain_layout(num_rows: int, length: int) -> Layout:
    """Every row is one sequence (or one with padding at its right, which a causal mask keeps apart by itself)."""
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (num_rows, length))
    zeros = np.zeros((num_rows, length), np.int32)
    return Layout(segments=zeros, prefixes=zeros, positions=positions, predecessors=positions - 1)  # type: ignore[arg-type]
