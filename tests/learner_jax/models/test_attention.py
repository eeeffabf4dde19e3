"""Attention "xla" against a dense float64 oracle: visibility, gradients and memory."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.models import blockwise_attention
from learner_jax.models.attention import attend
from tests.support.attention_cases import (
    PACKED,
    SHARED,
    assert_close,
    equations,
    labels,
    operands,
    oracle,
    pulled_back,
    silent_padding,
)

#: Nothing from the first segment on is seen late in a row, but a prefix before the last segment is.
LATE = [[(40, None), (26, None), (10, 1), (9, 1)], [(42, None), (24, None), (20, 1), (5, 1)]]


@pytest.mark.parametrize(
    ("rows", "length", "block", "heads"),
    [
        (None, 96, 32, (4, 2)),
        (PACKED, 96, 16, (4, 2)),
        (SHARED, 96, 16, (4, 2)),
        (LATE, 96, 8, (4, 2)),
        (SHARED, 96, 96, (2, 2)),
        (SHARED, 101, 16, (6, 1)),
        (None, 77, 32, (2, 2)),
        (PACKED, 96, 128, (4, 1)),
    ],
    ids=["plain", "packed", "shared", "late", "one-block", "ragged-mqa", "plain-ragged-mha", "row-below-block"],
)
def test_output_and_gradients_follow_the_definition(rows: Any, length: int, block: int, heads: tuple[int, int]) -> None:
    known = None if rows is None else labels(rows, length)
    query, key, value, cotangent = operands(3 if rows is None else len(rows), length, *heads)
    cotangent = silent_padding(cotangent, known)
    got = pulled_back(query, key, value, cotangent, known, block=block)
    assert_close(got, oracle(query, key, value, cotangent, known), known, 1e-5)


def test_segment_numbers_may_come_in_any_order() -> None:
    segments = np.repeat(np.array([[3, 0, 2, 1, -1, 0]], np.int32), 16, axis=1)
    known = (segments, np.where(segments == 1, 3, segments))
    query, key, value, cotangent = operands(1, 96, 2, 1)
    cotangent = silent_padding(cotangent, known)
    got = pulled_back(query, key, value, cotangent, known, block=8)
    assert_close(got, oracle(query, key, value, cotangent, known), known, 1e-5)


def test_no_prefixes_are_prefixes_equal_to_segments() -> None:
    segments, prefixes = labels(PACKED, 96)
    query, key, value, _ = operands(3, 96, 4, 2)
    call = functools.partial(attend, query, key, value, segments=segments, implementation="xla", block=32)
    np.testing.assert_array_equal(call(prefixes=None), call(prefixes=prefixes))


def test_half_precision_rounds_only_operands_and_results() -> None:
    known = labels(SHARED, 96)
    query, key, value, cotangent = operands(3, 96, 4, 2, dtype=jnp.bfloat16)
    cotangent = silent_padding(cotangent, known)
    got = pulled_back(query, key, value, cotangent, known, block=32)
    assert [x.dtype for x in got] == [jnp.bfloat16] * 4
    # bf16 results are off by up to 2**-9 of themselves; the backward pass reads the rounded output besides.
    assert_close(got, oracle(query, key, value, cotangent, known), known, 2**-7)


def test_a_row_of_one_segment_is_causal_attention() -> None:
    query, key, value, cotangent = operands(2, 80, 4, 2)
    zeros = np.zeros((2, 80), np.int32)
    got = pulled_back(query, key, value, cotangent, (zeros, zeros), block=32)
    output, pull_back = jax.vjp(functools.partial(jax.nn.dot_product_attention, is_causal=True), query, key, value)
    # Both are fp32 and sum in another order.
    for a, b in zip(got, [output, *pull_back(cotangent)], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_other_segments_do_not_change_a_bit() -> None:
    known = labels(SHARED, 96)
    segments = known[0]
    query, key, value, cotangent = operands(3, 96, 4, 2)
    # Slots of row 0 that segment 2 (prefix 0) does not see; enormous, so that a leak cannot round away.
    unseen = (segments[0] != 2) & (segments[0] != 0)
    changed = [x.at[0, unseen].multiply(1e6) for x in (query, key, value)]
    only = np.zeros(segments.shape, bool)
    only[0] = segments[0] == 2
    cotangent = jnp.where(only[..., None, None], cotangent, 0)
    before = pulled_back(query, key, value, cotangent, known, block=16)
    after = pulled_back(*changed, cotangent, known, block=16)
    np.testing.assert_array_equal(before[0][0, only[0]], after[0][0, only[0]])
    for a, b in zip(before[1:], after[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(before[0][0], after[0][0])


def test_padding_is_finite_and_leaks_nothing() -> None:
    known = labels(PACKED, 96)
    query, key, value, cotangent = operands(3, 96, 4, 2)
    loud = pulled_back(query, key, value, cotangent, known, block=16)
    quiet = pulled_back(query, key, value, silent_padding(cotangent, known), known, block=16)
    real = known[0] >= 0
    for a, b in zip(loud, quiet, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a[real], b[real])
    for gradient in quiet[1:]:
        np.testing.assert_array_equal(gradient[~real], 0)


def test_extreme_scores_stay_exact() -> None:
    known = labels([[(1, None), (95, None)]], 96)
    query, key, value, cotangent = operands(1, 96, 2, 1)
    # Slot 0 is hidden from segment 1 and would beat all it sees by far more than exp can hold.
    query, key = query.at[:, :, :, 0].set(40.0), key.at[:, 0, :, 0].set(40.0)
    got = pulled_back(query, key, value, cotangent, known, block=16)
    # Scores of a few hundred carry fp32 errors of 1e-5 into the exponent.
    assert_close(got, oracle(query, key, value, cotangent, known), known, 1e-4)


@pytest.mark.parametrize("rows", [PACKED, SHARED, LATE], ids=["packed", "shared", "late"])
def test_only_blocks_that_are_seen_are_visited(rows: Any) -> None:
    segments, prefixes = labels(rows, 96)
    see = (segments[:, None] == segments[..., None]) | (segments[:, None] == prefixes[..., None])
    see &= np.tril(np.ones((96, 96), bool)) & (segments >= 0)[:, None]
    blocks = see.reshape(len(rows), 12, 8, 12, 8).any(axis=(0, 2, 4))
    expected = [int(np.argmax(row)) if row.any() else i for i, row in enumerate(blocks)]
    _, starts = blockwise_attention._visibility((jnp.asarray(segments), jnp.asarray(prefixes)), 96, 8)
    np.testing.assert_array_equal(starts, expected)


def _gradient_of(length: int) -> Any:
    shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    row = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(query: Any, key: Any, value: Any, segments: Any, prefixes: Any) -> Any:
        return attend(query, key, value, segments=segments, prefixes=prefixes, implementation="xla").sum()

    return jax.jit(jax.grad(loss, (0, 1, 2))).trace(shape, shape, shape, row, row)


def test_memory_grows_linearly_with_the_row() -> None:
    small, large = (
        _gradient_of(length).lower().compile().memory_analysis().temp_size_in_bytes for length in (2048, 8192)
    )
    assert large <= 4.2 * small
    assert large < 8192 * 8192


def test_the_program_does_not_grow_with_the_row() -> None:
    small, large = (sum(1 for _ in equations(_gradient_of(length).jaxpr)) for length in (2048, 8192))
    assert 50 < small == large < 1000
