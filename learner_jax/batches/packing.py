"""Packs the sequences of a batch into rows of one fixed length, planned over the whole batch; NumPy on the host.

Where the attention kernel can do it and it costs less, the prompt that the answers of a group share stands once in the
row, followed by the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from learner_jax.batches.rows import Lengths, Pieces, Rows, first_fit_decreasing, laid_out, units
from learner_jax.models import NONE, Layout
from learner_jax.runtime import WeirError


class PackingError(WeirError, ValueError):
    """A sequence fits into no row."""


@dataclass(frozen=True)
class Plan:
    """Where every token of B sequences of at most T tokens lies in R rows of L slots.

    Attributes:
      slots: int64[B, T], flat slot (row x L + slot in the row) of each token, `NONE` beyond a sequence's end. Sequences
        that share a prompt have the same slots for it.
      sources: int64[R, L], flat index (sequence x T + position) of the token in each slot, `NONE` on padding.
      layout: int32[R, L] each.
      shares_prompts: whether prompts stand once per group.
    """

    slots: Int[np.ndarray, "B T"]
    sources: Int[np.ndarray, "R L"]
    layout: Layout
    shares_prompts: bool

    @property
    def num_rows(self) -> int:
        return int(self.sources.shape[0])

    @property
    def row_tokens(self) -> int:
        return int(self.sources.shape[1])

    @property
    def real_share(self) -> float:
        """Slots that hold a token, of all slots."""
        return float(np.mean(self.sources != NONE))

    def pack(self, values: np.ndarray, *, fill: float = 0) -> Any:
        """[B, T] per token to [R, L] per slot."""
        flat = np.asarray(values).reshape(-1)
        packed = flat[self.sources] if flat.size else np.empty(self.sources.shape, flat.dtype)
        packed[self.sources == NONE] = fill
        return packed

    def unpack(self, values: np.ndarray) -> Any:
        """[R, L] per slot to [B, T] per token; 0 beyond a sequence's end."""
        unpacked = np.asarray(values).reshape(-1)[self.slots]
        unpacked[self.slots == NONE] = 0
        return unpacked


@dataclass(frozen=True)
class _Way:
    """Sequences packed into rows of one length; None where one doesn't fit."""

    shares_prompts: bool
    row_tokens: int
    rows: Rows | None


#: Numbers of rows that one host needs, per way to pack; `NONE` where a sequence doesn't fit.
RowCounts = list[int]


class Packing:
    """Sequences packed in every way that there are programs for; what is left is to take the cheapest.

    A row of L slots costs L (1 + attention_weight x L): what is computed per slot, and the pairs that attention visits.
    Where several hosts pack a part of the batch each, all choose the same way and the same number of rows: those of the
    host that needs most.
    """

    def __init__(
        self, lengths: Lengths, width: int, ways: Sequence[_Way], needed: list[RowCounts], attention_weight: float
    ) -> None:
        self._lengths, self._width, self._ways = lengths, width, ways
        self._needed, self._attention_weight = needed, attention_weight
        self._plans: dict[int, Plan] = {}

    def num_rows(self, rows_multiple: int = 1) -> int:
        """Rows of `plan`, without making it."""
        return self._cheapest(rows_multiple)[1]

    def plan(self, rows_multiple: int = 1) -> Plan:
        """The cheapest way, its number of rows rounded up to a multiple; made once for each multiple."""
        if rows_multiple not in self._plans:
            way, num_rows = self._cheapest(rows_multiple)
            self._plans[rows_multiple] = _placed(way, self._lengths, width=self._width, num_rows=num_rows)
        return self._plans[rows_multiple]

    def _cheapest(self, rows_multiple: int) -> tuple[_Way, int]:
        counts = _most_needed(self._needed, rows_multiple)

        def cost(way: int) -> float:
            length = self._ways[way].row_tokens
            return counts[way] * length * (1.0 + self._attention_weight * length)

        best = min((way for way, count in enumerate(counts) if count != NONE), key=cost)
        return self._ways[best], counts[best]


def alone(counts: RowCounts) -> list[RowCounts]:
    """What every host needs, where there is only this one."""
    return [counts]


def pack_rows(
    lengths: Lengths,
    *,
    width: int,
    row_lengths: Sequence[int],
    may_share: bool = False,
    max_segments: int | None = None,
    attention_weight: float = 0.0,
    gather: Callable[[RowCounts], list[RowCounts]] = alone,
) -> Packing:
    """Sequences in rows of every length, with prompts shared or repeated.

    Args:
      width: T, to which the sequences are padded on the host.
      row_lengths: the few lengths of rows that programs are compiled for.
      max_segments: most sequences that a row may hold.
      attention_weight: cost of attending to one slot of the row over that of everything else a slot costs.
      gather: exchanges the row counts of all hosts; called once.
    Raises:
      PackingError: a sequence is longer than the longest row.
    """
    longest = int(lengths.tokens.max(initial=0))
    if longest > max(row_lengths):
        raise PackingError(
            f"sequence {int(lengths.tokens.argmax())} has {longest} tokens, the longest row holds {max(row_lengths)}: "
            f"raise learner.row_tokens or shorten what is sampled"
        )
    # Every host lists the same ways, whatever its own sequences are.
    ways = [(share, length) for share in ((False, True) if may_share else (False,)) for length in sorted(row_lengths)]
    has_prompts = bool((lengths.shared > 0).any())
    packed = [
        _Way(
            share,
            length,
            first_fit_decreasing(units(lengths, length, share=share and has_prompts), length, max_segments)
            if length >= longest
            else None,
        )
        for share, length in ways
    ]
    needed = gather([NONE if way.rows is None else way.rows.count for way in packed])
    return Packing(lengths, width, packed, needed, attention_weight)


def _most_needed(counts: list[RowCounts], rows_multiple: int) -> RowCounts:
    """Rows that every host lays out, per way to pack: what the neediest needs, rounded up; at least one multiple."""
    return [
        NONE if NONE in needed else max(-(-max(needed) // rows_multiple), 1) * rows_multiple
        for needed in zip(*counts, strict=True)
    ]


def one_per_row(
    lengths: Lengths,
    *,
    width: int,
    row_tokens: int,
    gather: Callable[[RowCounts], list[RowCounts]] = alone,
) -> Packing:
    """Every sequence in a row of its own, in order; arguments as of `pack_rows`.

    Raises:
      PackingError: a sequence is longer than a row.
    """
    longest = int(lengths.tokens.max(initial=0))
    if longest > row_tokens:
        raise PackingError(f"a sequence has {longest} tokens, rows hold {row_tokens}")
    number = np.arange(len(lengths.tokens))
    rows = Rows(units(lengths, row_tokens, share=False), number, number, len(number))
    return Packing(lengths, width, [_Way(False, row_tokens, rows)], gather([rows.count]), 0.0)


def _placed(way: _Way, lengths: Lengths, *, width: int, num_rows: int) -> Plan:
    assert way.rows is not None
    pieces = laid_out(way.rows, lengths, way.row_tokens)
    shape = (num_rows, way.row_tokens)
    # Runs of slots: before each piece the padding there, mostly none; at the end that of the last row.
    starts = np.append(pieces.slots, num_rows * way.row_tokens)
    gaps = np.diff(np.append(0, starts))
    gaps[1:] -= pieces.tokens
    counts = np.column_stack([gaps, np.append(pieces.tokens, 0)]).reshape(-1)

    def spread(values: np.ndarray, dtype: type = np.int32) -> np.ndarray:
        """A value of each piece in all its slots; `NONE` on padding."""
        of_runs: np.ndarray = np.full((len(gaps), 2), NONE, dtype)
        of_runs[:-1, 1] = values
        return np.repeat(of_runs.reshape(-1), counts).reshape(shape)

    segments = spread(pieces.segments)
    padding = segments == NONE

    def numbered(first: np.ndarray, fill: int, dtype: type = np.int32) -> np.ndarray:
        """first, first + 1, ... in the slots of each piece."""
        array = spread(first - pieces.slots, dtype)
        array += np.arange(array.size, dtype=dtype).reshape(shape)
        np.putmask(array, padding, fill)
        return array

    predecessors = numbered(pieces.slots % way.row_tokens - 1, NONE)
    predecessors.reshape(-1)[pieces.slots] = pieces.predecessors
    layout: Any = (segments, spread(pieces.prefixes), numbered(pieces.positions, 0), predecessors)
    return Plan(
        slots=_slots(pieces, lengths, width),
        sources=numbered(pieces.sequences * width + pieces.positions, NONE, np.int64),
        layout=Layout(*layout),
        shares_prompts=way.shares_prompts,
    )


def _slots(pieces: Pieces, lengths: Lengths, width: int) -> Int[np.ndarray, "B T"]:
    """Flat slot of each token of each sequence: those of its shared prompt, then those of its own piece."""
    (own,) = np.nonzero(~pieces.is_prompt)
    own = own[np.argsort(pieces.sequences[own])]
    shape = (len(lengths.tokens), width)
    token = np.arange(shape[0]) * width
    prompt = pieces.positions[own]
    first = np.column_stack(
        [pieces.prompt_slots[own] - token, pieces.slots[own] - token - prompt, np.zeros_like(token)]
    )
    counts = np.column_stack([prompt, pieces.tokens[own], width - lengths.tokens])
    slots: np.ndarray = np.repeat(first, counts.reshape(-1)).reshape(shape)
    slots += np.arange(slots.size).reshape(shape)
    np.putmask(slots, np.arange(width) >= lengths.tokens[:, None], NONE)
    return slots
