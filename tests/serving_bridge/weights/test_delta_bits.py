"""Updates between any two versions: applied to the old one they give the new one, bit by bit; damage is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_bridge.weights import delta as weight_delta
from serving_bridge.weights.delta import DeltaError, Encoder, changes, decode, moved, num_changes
from tests.support.properties import examples

WORDS = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
#: Zeros of both signs, infinities, NaNs that differ in sign, kind and payload, and the smallest and largest numbers.
SPECIAL = {
    2: [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81, 0x7FFF, 0xFFFF, 0x0001, 0x8001, 0x7F7F, 0xFF7F],
    4: [0x0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x1],
}
#: Around a byte of gap, and around what is compared at a time.
BORDERS = [0, 1, 7, 8, 253, 254, 255, 256, 509, 510, 511, weight_delta._BLOCK - 1, weight_delta._BLOCK]
Pair = tuple[np.ndarray, np.ndarray]


def words(itemsize: int) -> st.SearchStrategy[int]:
    return st.sampled_from(SPECIAL[itemsize]) | st.integers(0, (1 << (8 * itemsize)) - 1)


@st.composite
def unchanged(draw: st.DrawFn, itemsize: int) -> Pair:
    """One tensor that stays as it is: gaps reach over it."""
    old = np.full(draw(st.integers(0, 300)), draw(words(itemsize)), WORDS[itemsize])
    return old, old.copy()


@st.composite
def sparse(draw: st.DrawFn, itemsize: int) -> Pair:
    """One tensor of which few elements change, each so far from the one before."""
    gaps = draw(st.lists(st.integers(0, 3) | st.sampled_from([254, 255, 256]) | st.sampled_from(BORDERS), max_size=5))
    size = sum(gaps) + len(gaps) + draw(st.integers(0, 2) | st.sampled_from(BORDERS))
    old = np.full(size, draw(words(itemsize)), WORDS[itemsize])
    new = old.copy()
    for position in np.cumsum(np.array(gaps, int) + 1) - 1:
        old[position], new[position] = draw(words(itemsize)), draw(words(itemsize))
    return old, new


@st.composite
def dense(draw: st.DrawFn, itemsize: int) -> Pair:
    """One tensor of which many elements change: a drawn piece again and again, longer than what is coded at a time."""
    piece = draw(st.lists(st.tuples(words(itemsize), words(itemsize)), min_size=1, max_size=20))
    size = draw(st.sampled_from([1, 8, 255, weight_delta._PIECE, weight_delta._PIECE + 1, 2 * weight_delta._PIECE + 7]))
    old, new = (np.resize(np.array(column, WORDS[itemsize]), size) for column in zip(*piece, strict=True))
    return old, new


@st.composite
def versions(draw: st.DrawFn) -> list[Pair]:
    """Two versions of a model, tensor by tensor; some are empty, and some have not changed."""
    itemsize = draw(st.sampled_from([2, 4]))
    return draw(st.lists(unchanged(itemsize) | sparse(itemsize) | dense(itemsize), min_size=1, max_size=6))


def encoded(pairs: list[Pair]) -> dict[str, np.ndarray]:
    encoder = Encoder(pairs[0][0].dtype.itemsize)
    for old, new in pairs:
        encoder.add(old.size, *changes(old, new))
    return encoder.finish()


@examples(2.0)
@given(versions())
def test_a_difference_applied_to_the_old_bits_gives_the_new_ones(pairs: list[Pair]) -> None:
    itemsize = pairs[0][0].dtype.itemsize
    count = sum(num_changes(old, new) for old, new in pairs)
    assert count == sum(int(np.count_nonzero(old != new)) for old, new in pairs)
    delta = decode(encoded(pairs), [old.size for old, _ in pairs], itemsize, count)
    for (old, new), (indices, distances) in zip(pairs, delta, strict=True):
        np.testing.assert_array_equal(indices, np.flatnonzero(old != new))
        result = old.copy()
        result[indices] = moved(old[indices], distances)
        np.testing.assert_array_equal(result, new)


@examples(0.5)
@given(versions(), st.data())
def test_streams_that_were_changed_are_refused_or_of_as_many_elements(pairs: list[Pair], data: st.DataObject) -> None:
    """Hashes find damage before this is asked; here nothing may be touched outside of the tensors."""
    itemsize = pairs[0][0].dtype.itemsize
    sizes = [old.size for old, _ in pairs]
    count = sum(num_changes(old, new) for old, new in pairs)
    streams = encoded(pairs)
    name = data.draw(st.sampled_from(sorted(streams)))
    damaged = streams[name].copy()
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, damaged.size - 1))] = data.draw(st.integers(0, 255))
    streams[name] = damaged[: data.draw(st.integers(0, damaged.size) | st.just(damaged.size))]
    try:
        delta = decode(streams, sizes, itemsize, count)
    except DeltaError:
        return
    assert delta.indices.size == delta.distances.size == count
    for size, (indices, _) in zip(sizes, delta, strict=True):
        assert (np.diff(indices) > 0).all()
        assert ((indices >= 0) & (indices < size)).all()


@examples(0.3)
@given(versions(), st.integers(-2, 2).filter(bool))
def test_another_number_of_changes_than_was_told_is_refused(pairs: list[Pair], more: int) -> None:
    count = sum(num_changes(old, new) for old, new in pairs) + more
    if count >= 0:
        with pytest.raises(DeltaError):
            decode(encoded(pairs), [old.size for old, _ in pairs], pairs[0][0].dtype.itemsize, count)
