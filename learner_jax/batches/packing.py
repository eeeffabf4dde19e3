"""Packs the sequences of a batch into rows of one fixed length, planned over the whole batch; NumPy on the host.

First-fit decreasing (Johnson et al., "Worst-Case Performance Bounds for Simple One-Dimensional Packing Algorithms",
1974): the longest sequence first, each into the first row with room. Where the attention kernel can do it and it costs
less, the prompt that the answers of a group share stands once in the row, followed by the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from learner_jax.models import NONE, Layout
from learner_jax.runtime import WeirError


class PackingError(WeirError, ValueError):
    """A sequence fits into no row."""


@dataclass(frozen=True)
class Lengths:
    """What the planner needs to know of B sequences.

    Attributes:
      tokens: length of each.
      groups: number of the group that each belongs to; sequences of a group are neighbours.
      shared: leading tokens that are the same in all sequences of its group; less than the length of each.
    """

    tokens: Int[np.ndarray, "B"]
    groups: Int[np.ndarray, "B"]
    shared: Int[np.ndarray, "B"]

    @classmethod
    def of(cls, tokens: Sequence[int] | np.ndarray) -> Lengths:
        """Sequences that share nothing."""
        tokens = np.asarray(tokens, np.int64)
        return cls(tokens, np.arange(len(tokens)), np.zeros_like(tokens))


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
class _Unit:
    """What is placed as one piece: one sequence, or sequences of one group behind their shared prompt."""

    members: tuple[int, ...]
    prompt: int
    tokens: int


@dataclass(frozen=True)
class _Way:
    """Sequences packed into rows of one length; None where one doesn't fit."""

    shares_prompts: bool
    row_tokens: int
    rows: list[list[_Unit]] | None


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
            _first_fit_decreasing(_units(lengths, length, share=share and has_prompts), length, max_segments)
            if length >= longest
            else None,
        )
        for share, length in ways
    ]
    needed = gather([NONE if way.rows is None else len(way.rows) for way in packed])
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
    rows = [[_Unit((i,), 0, int(n))] for i, n in enumerate(lengths.tokens)]
    return Packing(lengths, width, [_Way(False, row_tokens, rows)], gather([len(rows)]), 0.0)


def _units(lengths: Lengths, row_tokens: int, *, share: bool) -> list[_Unit]:
    if not share:
        return [_Unit((i,), 0, int(n)) for i, n in enumerate(lengths.tokens)]
    units: list[_Unit] = []
    starts = np.flatnonzero(np.diff(lengths.groups, prepend=lengths.groups[0] - 1))
    for start, end in zip(starts, [*starts[1:], len(lengths.groups)], strict=True):
        prompt = int(lengths.shared[start])
        members: list[int] = []
        tokens = prompt
        for i in range(start, end):
            own = int(lengths.tokens[i]) - prompt
            if members and tokens + own > row_tokens:  # the rest of the group repeats its prompt in another row
                units.append(_Unit(tuple(members), prompt, tokens))
                members, tokens = [], prompt
            members.append(i)
            tokens += own
        units.append(_Unit(tuple(members), prompt, tokens))
    return units


def _first_fit_decreasing(units: list[_Unit], row_tokens: int, max_segments: int | None) -> list[list[_Unit]]:
    rows: list[list[_Unit]] = []
    room = np.zeros(len(units), np.int64)
    for unit in sorted(units, key=lambda u: -u.tokens):  # stable: the same batch gives the same plan
        row = int(np.argmax(room[: len(rows)] >= unit.tokens)) if rows else 0
        if not rows or room[row] < unit.tokens:
            row = len(rows)
            rows.append([])
            room[row] = row_tokens
        rows[row].append(unit)
        room[row] -= unit.tokens
        if len(rows[row]) == max_segments:
            room[row] = 0
    return rows


def _placed(way: _Way, lengths: Lengths, *, width: int, num_rows: int) -> Plan:
    row_tokens = way.row_tokens
    assert way.rows is not None
    shape = (num_rows, row_tokens)
    sources = np.full(shape, NONE, np.int64)
    segments, prefixes, predecessors = (np.full(shape, NONE, np.int32) for _ in range(3))
    positions = np.zeros(shape, np.int32)
    slots = np.full((len(lengths.tokens), width), NONE, np.int64)

    def place(row: int, slot: int, sequence: int, first: int, last: int, segment: int, prefix: int) -> int:
        """Tokens first..last of a sequence from `slot` on; returns the next free slot."""
        end = slot + last - first
        sources[row, slot:end] = sequence * width + np.arange(first, last)
        segments[row, slot:end], prefixes[row, slot:end] = segment, prefix
        positions[row, slot:end] = np.arange(first, last)
        predecessors[row, slot:end] = np.arange(slot - 1, end - 1)
        slots[sequence, first:last] = row * row_tokens + np.arange(slot, end)
        return end

    for row, units in enumerate(way.rows):
        slot, segment = 0, 0
        for unit in units:
            prompt_start, prompt_segment = slot, segment
            if unit.prompt:
                slot = place(row, slot, unit.members[0], 0, unit.prompt, segment, segment)
                predecessors[row, prompt_start] = NONE
                segment += 1
            for member in unit.members:
                start = slot
                prefix = prompt_segment if unit.prompt else segment
                slot = place(row, slot, member, unit.prompt, int(lengths.tokens[member]), segment, prefix)
                predecessors[row, start] = prompt_start + unit.prompt - 1 if unit.prompt else NONE
                slots[member, : unit.prompt] = row * row_tokens + np.arange(prompt_start, prompt_start + unit.prompt)
                segment += 1
    layout: Any = (segments, prefixes, positions, predecessors)
    return Plan(slots=slots, sources=sources, layout=Layout(*layout), shares_prompts=way.shares_prompts)
