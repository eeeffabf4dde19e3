"""Updates: any two versions of any bits come back exactly, and damage is refused."""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import pytest
import zstandard

from serving_bridge.weights import delta as weight_delta
from serving_bridge.weights.delta import DeltaError, Encoder, changes, decode, moved

WORDS = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


def encode(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    encoder = Encoder(pairs[0][0].dtype.itemsize)
    for old, new in pairs:
        encoder.add(old.size, *changes(old, new))
    return encoder.finish()


def applied(streams: dict[str, np.ndarray], olds: list[np.ndarray], num_changed: int) -> list[np.ndarray]:
    delta = decode(streams, [old.size for old in olds], olds[0].dtype.itemsize, num_changed)
    news = []
    for old, (indices, distances) in zip(olds, delta, strict=True):
        new = old.copy()
        new[indices] = moved(old[indices], distances)
        news.append(new)
    return news


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 100_000])
def test_gaps_of_any_length_also_across_tensors(gap: int):
    sizes = [gap + 3, gap + 3, 1, 2 * gap + 5]
    positions = [[gap, gap + 1], [gap], [], [2 * gap + 4]]
    pairs = []
    for size, where in zip(sizes, positions, strict=True):
        old = np.zeros(size, "<u2")
        new = old.copy()
        new[where] = 7
        pairs.append((old, new))
    delta = decode(encode(pairs), sizes, 2, 4)
    assert [indices.tolist() for indices, _ in delta] == positions
    for (_, new), got in zip(pairs, applied(encode(pairs), [old for old, _ in pairs], 4), strict=True):
        np.testing.assert_array_equal(got, new)


def test_a_neighbouring_float_is_one_ulp_away_whatever_its_value():
    """The oracle is numpy's nextafter."""
    values = np.array([0.0, -0.0, 1.0, -1.0, 1e-38, -3e38, 0.02, np.float32(1e-45)], np.float32)
    for toward in (np.inf, -np.inf):
        other = np.nextafter(values, np.float32(toward))
        distance = weight_delta._ordinals(other.view("<u4")).astype(np.int64) - weight_delta._ordinals(
            values.view("<u4")
        ).astype(np.int64)
        wrapped = (distance + (1 << 31)) % (1 << 32) - (1 << 31)
        # From either zero the nearest number of the other sign lies beyond the other zero.
        crosses = (values == 0) & (np.signbit(values) != np.signbit(other))
        steps = np.where(crosses, 2, 1)
        np.testing.assert_array_equal(np.abs(wrapped), steps)


def test_a_step_of_one_ulp_in_one_percent_of_bf16_takes_a_hundredth():
    rng = np.random.default_rng(0)
    old = (0.02 * rng.standard_normal(1 << 20)).astype(ml_dtypes.bfloat16).view("<u2")
    where = rng.random(old.size) < 0.0096
    new = old + np.where(where, rng.choice(np.array([1, 65535]), old.size), 0).astype("<u2")
    size = sum(stream.size for stream in encode([(old, new)]).values())
    # Entropy: -log2(0.0096) + log2(e) bits of gap and one of sign, of 16 bits: 1/178.
    assert old.nbytes / size > 150


def test_damaged_streams_are_refused():
    old = np.arange(10_000, dtype="<u2")
    new = old.copy()
    new[::100] += 1
    streams = encode([(old, new)])
    sizes = [old.size]
    assert [indices.size for indices, _ in decode(streams, sizes, 2, 100)] == [100]
    with pytest.raises(DeltaError, match="has streams .*, expected"):
        decode({"gaps": streams["gaps"]}, sizes, 2, 100)
    with pytest.raises(DeltaError, match="not one whole zstd frame"):
        decode(streams | {"gaps": streams["gaps"][:-2]}, sizes, 2, 100)
    with pytest.raises(DeltaError, match="not one whole zstd frame"):
        decode(streams | {"gaps": np.ones(40, np.uint8)}, sizes, 2, 100)
    with pytest.raises(DeltaError, match=r"element 9900 of 9900"):
        decode(streams, [9900], 2, 100)
    other = encode([(old, np.where(np.arange(old.size) < 5, old + 1, old).astype("<u2"))])
    with pytest.raises(DeltaError, match=r"ulps.0 has 5 bytes for 100 changes"):
        decode(streams | {"ulps.0": other["ulps.0"]}, sizes, 2, 100)
    with pytest.raises(DeltaError, match="changes 100 of 3 elements"):
        decode(streams, [3], 2, 100)
    with pytest.raises(DeltaError, match="changes 100 elements, expected 139"):
        decode(streams, sizes, 2, 139)
    with pytest.raises(DeltaError, match="of at most 59 bytes"):
        decode(streams, sizes, 2, 20)
    with pytest.raises(DeltaError, match="of uint16, expected uint8"):
        decode(streams | {"gaps": np.ones(40, np.uint16)}, sizes, 2, 100)
    gaps = zstandard.ZstdDecompressor().decompress(streams["gaps"].tobytes(), max_output_size=1000)
    half = zstandard.ZstdCompressor().compress(gaps + b"\xff")  # as many changes, and the beginning of another gap
    with pytest.raises(DeltaError, match="the gaps break off within a gap"):
        decode(streams | {"gaps": np.frombuffer(half, np.uint8)}, sizes, 2, 100)
    bomb = zstandard.ZstdCompressor().compress(bytes(10_000))
    with pytest.raises(DeltaError, match="stream gaps declares 10000 bytes, expected at most 139"):
        decode(streams | {"gaps": np.frombuffer(bomb, np.uint8)}, sizes, 2, 100)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("size", [0, 1, 3, 9, 4096, weight_delta._BLOCK + 5])
def test_changes_are_where_words_differ_and_the_hash_is_of_the_new_ones(itemsize: int, share: float, size: int):
    rng = np.random.default_rng(size)
    # One word into an array: not every tensor begins at a multiple of eight bytes.
    old = rng.integers(0, 1 << 16, size + 1).astype(WORDS[itemsize])[1:]
    new = np.where(rng.random(size) < share, ~old, old).astype(WORDS[itemsize])
    hasher = hashlib.sha256()
    indices, olds, news = changes(old, new, hasher)
    np.testing.assert_array_equal(indices, np.flatnonzero(old != new))
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(olds, old[indices])
    np.testing.assert_array_equal(news, new[indices])
    assert (olds.dtype, news.dtype) == (old.dtype, new.dtype)
    assert hasher.digest() == hashlib.sha256(new.tobytes()).digest()
