"""Rows of units, against first-fit decreasing done one unit after the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner_jax.batches.rows import Lengths, first_fit_decreasing, units


def one_after_the_other(sizes: list[int], row_tokens: int, max_segments: int | None) -> list[list[int]]:
    """Units of each row, in the order in which they were placed."""
    rows: list[list[int]] = []
    for unit in sorted(range(len(sizes)), key=lambda unit: -sizes[unit]):
        for row in rows:
            if sum(sizes[other] for other in row) + sizes[unit] <= row_tokens and len(row) != max_segments:
                row.append(unit)
                break
        else:
            rows.append([unit])
    return rows


@given(
    st.lists(st.integers(1, 5) | st.integers(1, 30), max_size=60),
    st.integers(0, 40),
    st.none() | st.integers(1, 6),
)
def test_each_unit_goes_into_the_first_row_with_room(sizes: list[int], more: int, max_segments: int | None) -> None:
    """Of few sizes, so that many units of one are placed together, and of many."""
    row_tokens = max(sizes, default=1) + more
    rows = first_fit_decreasing(units(Lengths.of(sizes), row_tokens, share=False), row_tokens, max_segments)
    found = [rows.order[rows.row == row].tolist() for row in range(rows.count)]
    assert found == one_after_the_other(sizes, row_tokens, max_segments)
    assert (np.diff(rows.row) >= 0).all()


def test_a_host_without_sequences_has_no_rows_whether_prompts_are_shared_or_not() -> None:
    for share in (False, True):
        assert first_fit_decreasing(units(Lengths.of([]), 8, share=share), 8, None).count == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=5), st.data())
def test_a_unit_is_as_much_of_a_group_as_fits_into_a_row(groups: list[tuple[int, int]], data: st.DataObject) -> None:
    own = [[data.draw(st.integers(1, 12)) for _ in range(size)] for size, _ in groups]
    prompts = [prompt for _, prompt in groups]
    row_tokens = max(prompt + max(answers) for prompt, answers in zip(prompts, own, strict=True)) + data.draw(
        st.integers(0, 30)
    )
    expected, first = [], 0
    for prompt, answers in zip(prompts, own, strict=True):
        members: list[int] = []
        for answer in answers:
            if members and prompt + sum(members) + answer > row_tokens:
                expected.append((first, len(members), prompt, prompt + sum(members)))
                first, members = first + len(members), []
            members.append(answer)
        expected.append((first, len(members), prompt, prompt + sum(members)))
        first += len(members)
    sizes = [len(answers) for answers in own]
    lengths = Lengths(
        np.array([prompt + answer for prompt, answers in zip(prompts, own, strict=True) for answer in answers]),
        np.repeat(np.arange(len(sizes)), sizes),
        np.repeat(np.array(prompts), sizes),
    )
    found = units(lengths, row_tokens, share=True)
    columns = (found.first, found.members, found.prompt, found.tokens)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
