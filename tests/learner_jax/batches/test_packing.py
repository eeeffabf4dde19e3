"""Packing: every token in one slot, nothing mixed up, few slots empty, and the cheapest of the layouts taken."""

from __future__ import annotations

import numpy as np
import pytest

from learner_jax.batches.packing import PackingError, Plan, one_per_row, pack_rows
from learner_jax.batches.rows import Lengths
from learner_jax.models.layout import NONE


def lognormal(count: int, *, longest: int, seed: int = 0) -> np.ndarray:
    """Lengths with mean 0.3 of the longest and sigma 0.8."""
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(np.log(0.3 * longest) - 0.8**2 / 2, 0.8, count)
    return np.clip(drawn, 8, longest).astype(np.int64)


def grouped(answers: list[list[int]], prompt: int) -> Lengths:
    sizes = [len(group) for group in answers]
    flat = np.array([prompt + n for group in answers for n in group])
    return Lengths(flat, np.repeat(np.arange(len(sizes)), sizes), np.full(len(flat), prompt))


def sequences_of(plan: Plan, lengths: Lengths, width: int) -> list[list[tuple[int, int]]]:
    """(sequence, position) of every token, read back by following predecessors from each sequence's last slot."""
    found = []
    predecessors = np.asarray(plan.layout.predecessors)
    for sequence, length in enumerate(lengths.tokens):
        row, slot = divmod(int(plan.slots[sequence, length - 1]), plan.row_tokens)
        chain = []
        while slot != NONE:
            chain.append(divmod(int(plan.sources[row, slot]), width))
            slot = int(predecessors[row, slot])
        found.append(chain[::-1])
    return found


@pytest.mark.parametrize("count", [64, 512, 2048])
def test_at_least_95_percent_of_the_slots_hold_tokens(count: int) -> None:
    for seed in range(5):
        lengths = Lengths.of(lognormal(count, longest=1024, seed=seed))
        plan = pack_rows(lengths, width=1024, row_lengths=(1024, 2048, 4096)).plan()
        assert plan.real_share >= 0.95


def test_every_token_comes_back_from_its_slot() -> None:
    lengths = Lengths.of(lognormal(40, longest=64))
    values = np.random.default_rng(1).normal(size=(40, 64))
    values[np.arange(64) >= lengths.tokens[:, None]] = 0
    plan = pack_rows(lengths, width=64, row_lengths=(64,)).plan(4)
    assert plan.num_rows % 4 == 0
    np.testing.assert_array_equal(plan.unpack(plan.pack(values)), values)
    assert (plan.pack(values, fill=7.0)[plan.sources == NONE] == 7.0).all()
    assert (plan.sources == NONE).any()
    # No slot of padding that an absent one could mean.
    full = pack_rows(Lengths.of([3, 5]), width=6, row_lengths=(8,)).plan()
    np.testing.assert_array_equal(full.unpack(np.ones((1, 8)))[0], [1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize("share", [False, True])
def test_following_predecessors_gives_each_sequence_in_order(share: bool) -> None:
    lengths = grouped([[3, 9, 4, 7], [5, 5], [1]], prompt=11)
    plan = pack_rows(lengths, width=20, row_lengths=(40,), may_share=share).plan()
    assert plan.shares_prompts == share
    for sequence, chain in enumerate(sequences_of(plan, lengths, 20)):
        assert [position for _, position in chain] == list(range(lengths.tokens[sequence]))
        # A shared prompt is that of another sequence of the group; the answer is the sequence's own.
        assert {s for s, position in chain if position >= 11} == {sequence}
        assert {lengths.groups[s] for s, _ in chain} == {lengths.groups[sequence]}


@pytest.mark.parametrize("share", [False, True])
def test_a_token_sees_exactly_its_sequence_up_to_itself(share: bool) -> None:
    lengths = grouped([[3, 9, 4], [5, 5]], prompt=6)
    plan = pack_rows(lengths, width=16, row_lengths=(48,), may_share=share).plan()
    layout = plan.layout
    segments, prefixes = np.asarray(layout.segments), np.asarray(layout.prefixes)
    slot = np.arange(plan.row_tokens)
    for sequence, length in enumerate(lengths.tokens):
        for position in range(length):
            row, own = divmod(int(plan.slots[sequence, position]), plan.row_tokens)
            related = (segments[row] == segments[row, own]) | (segments[row] == prefixes[row, own])
            seen = np.flatnonzero(related & (slot <= own))
            expected = plan.slots[sequence, : position + 1] % plan.row_tokens
            np.testing.assert_array_equal(seen, np.sort(expected))
            assert layout.positions[row, own] == position
            assert segments[row, own] != NONE


def test_padding_belongs_to_no_segment() -> None:
    plan = pack_rows(Lengths.of([3, 4]), width=5, row_lengths=(5,)).plan(4)
    padding = plan.sources == NONE
    assert padding.sum() == 13
    for name in ("segments", "prefixes", "predecessors"):
        assert (np.asarray(getattr(plan.layout, name))[padding] == NONE).all(), name


def test_prompts_are_shared_only_where_that_costs_less() -> None:
    long_prompts = grouped([[64] * 8, [64] * 8], prompt=512)
    plan = pack_rows(long_prompts, width=576, row_lengths=(576, 1024), may_share=True, attention_weight=1e-4).plan()
    assert plan.shares_prompts
    assert (plan.num_rows, plan.row_tokens) == (2, 1024)
    never = pack_rows(long_prompts, width=576, row_lengths=(576, 1024), attention_weight=1e-4).plan()
    assert not never.shares_prompts
    # Two short prompts save 20 slots of 600, but need rows three times as long for every pair of tokens.
    short_prompts = grouped([[90] * 3, [90] * 3], prompt=10)
    for attention_weight, shares in ((0.0, True), (0.1, False)):
        plan = pack_rows(
            short_prompts, width=100, row_lengths=(100, 290), may_share=True, attention_weight=attention_weight
        ).plan()
        assert plan.shares_prompts == shares
        assert plan.row_tokens == (290 if shares else 100)


def test_a_group_that_fits_no_row_repeats_its_prompt() -> None:
    lengths = grouped([[30] * 8], prompt=40)
    plan = pack_rows(lengths, width=70, row_lengths=(100,), may_share=True).plan()
    assert plan.shares_prompts
    assert plan.num_rows == 4  # two answers behind each copy of the prompt
    assert len(np.unique(plan.slots[:, 0])) == 4
    assert sequences_of(plan, lengths, 70)[7][-1] == (7, 69)


def test_the_cheapest_row_length_is_taken() -> None:
    short = Lengths.of([20] * 16)
    assert pack_rows(short, width=100, row_lengths=(20, 100), attention_weight=0.01).plan().row_tokens == 20
    assert pack_rows(Lengths.of([60, 20]), width=100, row_lengths=(20, 100)).plan().row_tokens == 100


def test_a_row_holds_no_more_segments_than_allowed() -> None:
    plan = pack_rows(Lengths.of([2] * 30), width=2, row_lengths=(60,), max_segments=8).plan()
    assert plan.num_rows == 4
    assert np.asarray(plan.layout.segments).max() == 7


def test_the_same_batch_gives_the_same_plan() -> None:
    lengths = Lengths.of(lognormal(100, longest=128, seed=3))
    first, second = (pack_rows(lengths, width=128, row_lengths=(128, 256)).plan() for _ in range(2))
    np.testing.assert_array_equal(first.sources, second.sources)


def test_the_number_of_rows_may_change_which_way_is_cheapest() -> None:
    packing = pack_rows(Lengths.of([4] * 5), width=4, row_lengths=(4, 20))
    assert [packing.num_rows(multiple) for multiple in (1, 5, 8)] == [5, 5, 8]
    packing = pack_rows(Lengths.of([4] * 6), width=4, row_lengths=(4, 12))  # six rows of 4, or two of 12
    plans = {multiple: packing.plan(multiple) for multiple in (1, 4, 5)}
    assert {multiple: plan.sources.shape for multiple, plan in plans.items()} == {1: (6, 4), 4: (8, 4), 5: (10, 4)}
    packing = pack_rows(Lengths.of([4] * 6), width=4, row_lengths=(4, 8))
    assert packing.plan(2).sources.shape == (6, 4)
    assert packing.plan(5).sources.shape == (10, 4)
    assert packing.plan(5) is packing.plan(5)


def test_one_sequence_per_row_keeps_the_order() -> None:
    plan = one_per_row(Lengths.of([3, 5, 2]), width=6, row_tokens=6).plan(4)
    assert plan.sources.shape == (4, 6)
    np.testing.assert_array_equal(plan.sources[:3, 0], [0, 6, 12])
    assert (plan.sources[3] == NONE).all()


def test_a_sequence_longer_than_every_row_is_refused() -> None:
    with pytest.raises(PackingError, match=r"sequence 1 has 9 tokens, the longest row holds 8: raise learner\.row_tok"):
        pack_rows(Lengths.of([3, 9]), width=9, row_lengths=(4, 8))
    with pytest.raises(PackingError, match="a sequence has 9 tokens, rows hold 8"):
        one_per_row(Lengths.of([3, 9]), width=9, row_tokens=8)
