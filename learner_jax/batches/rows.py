"""Which row each sequence goes to and where in it, for all sequences at once; NumPy on the host.

First-fit decreasing (Johnson et al., "Worst-Case Performance Bounds for Simple One-Dimensional Packing Algorithms",
1974): the longest sequence first, each into the first row with room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from learner_jax.models import NONE

#: From so many units of one size on, placing them together costs less than one after the other.
_TOGETHER = 6


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
class Units:
    """What is placed as one piece each: one sequence, or neighbours of one group behind their shared prompt.

    Attributes:
      first, members: number of the first sequence, and how many there are.
      prompt: tokens of the shared prompt; 0 where there is none.
      tokens: of the whole unit, with the prompt once.
    """

    first: Int[np.ndarray, "U"]
    members: Int[np.ndarray, "U"]
    prompt: Int[np.ndarray, "U"]
    tokens: Int[np.ndarray, "U"]


@dataclass(frozen=True)
class Rows:
    """Units in rows: the row of each, and their order, in which those of one row follow each other."""

    units: Units
    order: Int[np.ndarray, "U"]
    row: Int[np.ndarray, "U"]
    count: int


@dataclass(frozen=True)
class Pieces:
    """Runs of tokens in neighbouring slots, in the order of slots: a sequence, a shared prompt, or what follows one.

    Attributes:
      slots: flat slot of the first token.
      tokens: how many there are.
      sequences, positions: that the first token comes from.
      segments, prefixes: of all tokens of the piece, as in a `Layout`.
      predecessors: slot in the row of what the first token follows; `NONE` for nothing.
      is_prompt: whether it is a shared prompt; every other piece is what a sequence has of its own.
      prompt_slots: flat slot of the first token of the prompt that the piece follows; its own where there is none.
    """

    slots: Int[np.ndarray, "P"]
    tokens: Int[np.ndarray, "P"]
    sequences: Int[np.ndarray, "P"]
    positions: Int[np.ndarray, "P"]
    segments: Int[np.ndarray, "P"]
    prefixes: Int[np.ndarray, "P"]
    predecessors: Int[np.ndarray, "P"]
    is_prompt: Bool[np.ndarray, "P"]
    prompt_slots: Int[np.ndarray, "P"]


def units(lengths: Lengths, row_tokens: int, *, share: bool) -> Units:
    """The units of all sequences; a group that fills more than a row repeats its prompt in the next one.

    Args:
      share: whether sequences of a group stand behind one prompt.
    """
    number = len(lengths.tokens)
    if not share or not number:
        ones, none = np.ones(number, np.int64), np.zeros(number, np.int64)
        return Units(np.arange(number), ones, none, lengths.tokens)
    starts = np.flatnonzero(np.diff(lengths.groups, prepend=lengths.groups[0] - 1))
    own = lengths.tokens - lengths.shared
    whole = lengths.shared[starts] + np.add.reduceat(own, starts)
    if whole.max() > row_tokens:
        starts = _with_splits(starts, own, lengths.shared, row_tokens)
        whole = lengths.shared[starts] + np.add.reduceat(own, starts)
    return Units(starts, np.diff(starts, append=number), lengths.shared[starts], whole)


def _with_splits(starts: np.ndarray, own: np.ndarray, shared: np.ndarray, row_tokens: int) -> Int[np.ndarray, "U"]:
    """First sequences of units: each group's, and wherever the next one would not fit behind the prompt any more."""
    found: list[int] = []
    for start, end in zip(starts.tolist(), np.append(starts, len(own))[1:].tolist(), strict=True):
        tokens = row_tokens + 1  # the first one always begins a unit
        for i in range(start, end):
            if tokens + own[i] > row_tokens:
                found.append(i)
                tokens = shared[start]
            tokens += own[i]
    return np.array(found, np.int64)


def first_fit_decreasing(units: Units, row_tokens: int, max_segments: int | None) -> Rows:
    """The longest unit first, each into the first row with room; the same units give the same rows.

    Args:
      max_segments: most units that a row may hold.
    """
    order = np.argsort(-units.tokens, kind="stable")
    sizes, firsts = np.unique(-units.tokens[order], return_index=True)
    most = len(order) if max_segments is None else max_segments
    row = np.empty(len(order), np.int64)
    room, places = np.zeros(len(order), np.int64), np.full(len(order), most)
    count = 0
    ends = np.append(firsts, len(order))[1:]
    for size, first, end in zip((-sizes).tolist(), firsts.tolist(), ends.tolist(), strict=True):
        if end - first < _TOGETHER:
            for place in range(first, end):
                found = int(np.argmax(room[:count] >= size)) if count else 0
                if not count or room[found] < size:
                    found, count = count, count + 1
                    room[found] = row_tokens
                row[place] = found
                room[found] -= size
                places[found] -= 1
                if not places[found]:
                    room[found] = 0
            continue
        # Units of one size: the first row takes as many as fit, then the next one.
        fits = np.minimum(room[:count] // size, places[:count])
        fits = np.clip(end - first - (np.cumsum(fits) - fits), 0, fits)
        left = end - first - int(fits.sum())
        each = min(row_tokens // size, most)
        added = -(-left // each)
        room[count : count + added] = row_tokens
        fits = np.concatenate([fits, np.full(added, each)])
        fits[-1:] -= max(added * each - left, 0)
        count += added
        row[first:end] = np.repeat(np.arange(count), fits)
        room[:count] -= size * fits
        places[:count] -= fits
        room[:count][places[:count] == 0] = 0
    by_row = np.argsort(row, kind="stable")
    return Rows(units, order[by_row], row[by_row], count)


def laid_out(rows: Rows, lengths: Lengths, row_tokens: int) -> Pieces:
    """Where each piece of the sequences lies: in each unit the shared prompt, if it has one, then its members."""
    units, order = rows.units, rows.order
    prompt, members, first = units.prompt[order], units.members[order], units.first[order]
    has_prompt = (prompt > 0).astype(np.int64)
    pieces_of = members + has_prompt
    unit = np.repeat(np.arange(len(order)), pieces_of)
    number = np.arange(len(unit))
    heads = (np.cumsum(pieces_of) - pieces_of)[unit]
    prompt, has_prompt = prompt[unit], has_prompt[unit] > 0
    is_prompt = has_prompt & (number == heads)
    sequences = first[unit] + np.maximum(number - heads - has_prompt, 0)
    positions = np.where(is_prompt, 0, prompt)
    tokens = np.where(is_prompt, prompt, lengths.tokens[sequences] - positions)

    row = rows.row[unit]
    slots, segments = _from_row_start(tokens, row), _from_row_start(np.ones_like(row), row)
    return Pieces(
        slots=slots + row * row_tokens,
        tokens=tokens,
        sequences=sequences,
        positions=positions,
        segments=segments,
        prefixes=np.where(has_prompt, segments[heads], segments),
        predecessors=np.where(has_prompt & ~is_prompt, slots[heads] + prompt - 1, NONE),
        is_prompt=is_prompt,
        prompt_slots=np.where(has_prompt, slots[heads], slots) + row * row_tokens,
    )


def _from_row_start(sizes: np.ndarray, row: np.ndarray) -> Int[np.ndarray, "P"]:
    """What stands before each piece in its row, of pieces in the order of rows."""
    before = np.cumsum(sizes) - sizes
    is_first = np.diff(row, prepend=-1) > 0
    result: np.ndarray = before - before[is_first][np.cumsum(is_first) - 1]
    return result
