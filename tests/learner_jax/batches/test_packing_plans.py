"""Plans of any batch: every token in one slot, in its place and its own segment, and back again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner_jax.batches.packing import PackingError, Plan, one_per_row, pack_rows
from learner_jax.batches.rows import Lengths
from learner_jax.batches.sequences import sequences
from learner_jax.models.layout import NONE
from tests.support.trajectories import make_group


@dataclass(frozen=True)
class Case:
    """A batch, and how it may be packed."""

    lengths: Lengths
    width: int
    row_lengths: tuple[int, ...]
    may_share: bool
    max_segments: int | None
    attention_weight: float
    rows_multiple: int

    def plan(self) -> Plan:
        packing = pack_rows(
            self.lengths,
            width=self.width,
            row_lengths=self.row_lengths,
            may_share=self.may_share,
            max_segments=self.max_segments,
            attention_weight=self.attention_weight,
        )
        plan = packing.plan(self.rows_multiple)
        assert plan.num_rows == packing.num_rows(self.rows_multiple)
        return plan


@st.composite
def batches(draw: st.DrawFn) -> Lengths:
    """Groups of answers of any length behind a prompt that they share, some of them nothing."""
    lengths, groups, shared = [], [], []
    for group, size in enumerate(draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))):
        prompt = draw(st.integers(0, 9)) if size > 1 else 0
        lengths += [prompt + draw(st.integers(1, 12)) for _ in range(size)]
        groups += [group] * size
        shared += [prompt] * size
    return Lengths(np.array(lengths), np.array(groups), np.array(shared))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = draw(batches())
    longest = int(lengths.tokens.max())
    others = draw(st.lists(st.integers(1, 80), max_size=2))
    return Case(
        lengths,
        width=longest + draw(st.integers(0, 3)),
        row_lengths=tuple(draw(st.permutations([longest + draw(st.integers(0, 40)), *others]))),
        may_share=draw(st.booleans()),
        max_segments=draw(st.none() | st.integers(1, 6)),
        attention_weight=draw(st.sampled_from([0.0, 0.01, 1.0])),
        rows_multiple=draw(st.integers(1, 4)),
    )


def owner(plan: Plan, lengths: Lengths, sequence: int, position: int, *, width: int) -> int:
    """The sequence whose token stands in the slot of a token: another of the group only for a shared prompt's."""
    found, place = divmod(int(plan.sources.reshape(-1)[plan.slots[sequence, position]]), width)
    assert place == position
    assert lengths.groups[found] == lengths.groups[sequence]
    if found != sequence:
        assert plan.shares_prompts
        assert position < lengths.shared[sequence]
    return found


@given(cases())
def test_every_token_is_in_one_slot_and_every_slot_holds_its_token(case: Case) -> None:
    plan, lengths = case.plan(), case.lengths
    assert plan.num_rows % case.rows_multiple == 0
    assert plan.row_tokens in case.row_lengths
    inside = np.arange(case.width) < lengths.tokens[:, None]
    assert ((plan.slots != NONE) == inside).all()
    for sequence, length in enumerate(lengths.tokens):
        slots = plan.slots[sequence, :length]
        assert len(set(slots // plan.row_tokens)) == 1, "in one row"
        for position in range(length):
            owner(plan, lengths, sequence, position, width=case.width)
    # Nothing is twice in the rows, and nothing in them is of no sequence.
    filled = np.flatnonzero(plan.sources != NONE)
    assert sorted(filled) == sorted(set(plan.slots[plan.slots != NONE].tolist()))
    assert len(set(plan.sources[plan.sources != NONE].tolist())) == len(filled)
    if not plan.shares_prompts:
        assert len(filled) == lengths.tokens.sum()


@given(cases(), st.integers(0, 3))
def test_unpacking_gives_back_what_was_packed(case: Case, seed: int) -> None:
    """Values that are the same where tokens are: a shared prompt's, as of one that was sampled once."""
    plan, lengths = case.plan(), case.lengths
    place = np.arange(case.width)
    own = 1 + seed + np.arange(len(lengths.tokens))[:, None] * case.width + place
    prompts = 1 + seed + 10_000 * (1 + lengths.groups)[:, None] + place
    values = np.where(place < lengths.shared[:, None], prompts, own)
    values[place >= lengths.tokens[:, None]] = 0
    packed = plan.pack(values, fill=-5)
    np.testing.assert_array_equal(plan.unpack(packed), values)
    assert (packed[plan.sources == NONE] == -5).all()


@given(cases())
def test_a_token_sees_its_sequence_up_to_itself_and_nothing_else(case: Case) -> None:
    plan, lengths = case.plan(), case.lengths
    layout = plan.layout
    segments, prefixes = np.asarray(layout.segments), np.asarray(layout.prefixes)
    positions, predecessors = np.asarray(layout.positions), np.asarray(layout.predecessors)
    slot_of_row = np.arange(plan.row_tokens)
    for sequence, length in enumerate(lengths.tokens):
        row = int(plan.slots[sequence, 0]) // plan.row_tokens
        own = plan.slots[sequence, :length] % plan.row_tokens
        np.testing.assert_array_equal(positions[row, own], np.arange(length))
        assert predecessors[row, own].tolist() == [NONE, *own[:-1].tolist()]
        for slot in own:
            related = (segments[row] == segments[row, slot]) | (segments[row] == prefixes[row, slot])
            seen = np.flatnonzero(related & (slot_of_row <= slot))
            assert seen.tolist() == sorted(own[own <= slot].tolist())
    for array in (segments, prefixes, predecessors):
        assert (array[plan.sources == NONE] == NONE).all()
    if case.max_segments is not None and not plan.shares_prompts:
        assert segments.max() < case.max_segments


@given(cases())
def test_no_way_of_packing_that_is_offered_costs_less(case: Case) -> None:
    def cost(plan: Plan) -> float:
        return plan.num_rows * plan.row_tokens * (1 + case.attention_weight * plan.row_tokens)

    chosen = cost(case.plan())
    for length in case.row_lengths:
        if length >= case.lengths.tokens.max():
            alone = pack_rows(
                case.lengths, width=case.width, row_lengths=(length,), max_segments=case.max_segments
            ).plan(case.rows_multiple)
            assert chosen <= cost(alone) * (1 + 1e-12)


@given(batches(), st.integers(1, 4))
def test_one_per_row_keeps_the_order(lengths: Lengths, rows_multiple: int) -> None:
    width = int(lengths.tokens.max())
    plan = one_per_row(lengths, width=width, row_tokens=width).plan(rows_multiple)
    for sequence, length in enumerate(lengths.tokens):
        assert plan.slots[sequence, :length].tolist() == list(range(sequence * width, sequence * width + length))
    assert (plan.sources[len(lengths.tokens) :] == NONE).all()


@given(batches())
def test_a_row_that_is_too_short_is_refused(lengths: Lengths) -> None:
    longest = int(lengths.tokens.max())
    with pytest.raises(PackingError, match=f"has {longest} tokens"):
        pack_rows(lengths, width=longest, row_lengths=(longest - 1,))


ANSWERS = st.tuples(st.lists(st.integers(1, 2), min_size=6, max_size=6), st.integers(1, 6))


@given(st.lists(st.lists(ANSWERS, min_size=1, max_size=4), min_size=1, max_size=4))
def test_what_a_group_shares_is_what_all_its_prompts_begin_with(drawn: list[list[tuple[list[int], int]]]) -> None:
    """Of two token ids, so that many prompts begin alike; the first sampled token of each ends what can be shared."""
    groups, expected = [], []
    for index, answers in enumerate(drawn):
        group = make_group(f"run/{index}", size=len(answers), prompt_tokens=6, answer_tokens=1)
        for sample, (tokens, first) in enumerate(answers):
            group[sample].tokens[:6] = tokens
            group[sample] = dataclasses.replace(group[sample], loss_mask=np.arange(7) == first)
        columns = zip(*(tokens for tokens, _ in answers), strict=True)
        same = next((place for place, column in enumerate(columns) if len(set(column)) > 1), 6)
        shared = min(same, *(first for _, first in answers)) if len(answers) > 1 else 0
        groups.append(group)
        expected += [shared] * len(answers)
    found = sequences(groups, sequence_length=8).lengths
    assert found.shared.tolist() == expected
    assert found.tokens.tolist() == [7] * len(expected)
    assert found.groups.tolist() == [index for index, group in enumerate(groups) for _ in group]
