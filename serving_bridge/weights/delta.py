"""Lossless differences between two versions of a model's weights: where bits changed, and by how many ulps.

All tensors count as one vector, one after another. An update is two streams of it: the gaps between changed elements,
one byte each (255 means "go on"), and the changes. A change is the distance of the new value from the old one in units
in the last place, that is in representable numbers, which is a small integer after an optimizer step whatever the
value; zigzag-coded and split into byte planes. Each stream is compressed by zstd. Decoded against its base, an update
gives absolute values, which may be written any number of times. Free of torch and JAX.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import zstandard

from learner_jax.runtime import WeirError

#: A gap byte that is not yet the end of the gap.
_GO_ON = 255
#: Elements compared at a time: old, new and their comparison stay in the cache.
_BLOCK = 1 << 19
#: Changes encoded at a time: what is computed of them stays in the cache, and in memory that is there already.
_PIECE = 1 << 15
_LEVEL = 1
_WORDS: dict[int, np.dtype] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


class DeltaError(WeirError, ValueError):
    """An update's streams are not those of the tensors it is said to be for."""


class Hasher(Protocol):
    """A hash that is fed piece by piece, such as those of hashlib and xxhash."""

    def update(self, data: Any, /) -> None: ...


def changes(
    old: np.ndarray, new: np.ndarray, hasher: Hasher | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(int64[K] ascending positions at which two flat arrays of words differ, old words there, new words there).

    Eight bytes are compared at a time, and only those that differ are looked at word by word.

    Args:
      hasher: is fed the bytes of `new`, block by block while they are in the cache.
    """
    per_eight = 8 // old.dtype.itemsize
    in_eights = old.size - old.size % per_eight
    old_eights, new_eights = (words[:in_eights].view(np.uint64) for words in (old, new))
    size = _BLOCK // per_eight
    flags = np.empty(size, bool)
    parts = [(np.zeros(0, np.int64), old[:0], new[:0])]
    for start in range(0, old_eights.size, size):
        before, after = old_eights[start : start + size], new_eights[start : start + size]
        differs = flags[: before.size]
        np.not_equal(before, after, out=differs)
        if hasher is not None:
            hasher.update(after.data)
        indices, olds, news = _in_block(before, after, differs, old.dtype)
        indices += start * per_eight
        parts.append((indices, olds, news))
    if in_eights < old.size:
        before, after = old[in_eights:], new[in_eights:]
        found = np.flatnonzero(before != after)
        parts.append((found + in_eights, before.take(found), after.take(found)))
        if hasher is not None:
            hasher.update(after.data)
    indices, olds, news = (np.concatenate(column) for column in zip(*parts, strict=True))
    return indices, olds, news


def _in_block(
    before: np.ndarray, after: np.ndarray, differs: np.ndarray, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(positions of differing words in a block, old words, new words), given which eight bytes differ."""
    eights = np.flatnonzero(differs)
    if 2 * eights.size > differs.size:  # taking so many of them out costs more than it saves
        olds, news = before.view(dtype), after.view(dtype)
        found = np.flatnonzero(olds != news)
        return found, olds.take(found), news.take(found)
    olds, news = before.take(eights).view(dtype), after.take(eights).view(dtype)
    found = np.flatnonzero(olds != news)
    shift = (8 // dtype.itemsize).bit_length() - 1
    eights <<= shift
    positions = eights.take(found >> shift)
    positions += found & ((1 << shift) - 1)
    return positions, olds.take(found), news.take(found)


def num_changes(old: np.ndarray, new: np.ndarray) -> int:
    """How many elements of two flat arrays of words differ."""
    blocks = (slice(start, start + _BLOCK) for start in range(0, old.size, _BLOCK))
    return sum(int(np.count_nonzero(old[block] != new[block])) for block in blocks)


class Encoder:
    """Collects the changes of one tensor after another into the streams of an update."""

    def __init__(self, itemsize: int) -> None:
        self._itemsize = itemsize
        self._gaps, *self._planes = (zstandard.ZstdCompressor(level=_LEVEL).compressobj() for _ in range(1 + itemsize))
        self._streams: list[list[bytes]] = [[] for _ in range(1 + itemsize)]
        self._passed = 0  # elements since the last changed one, over tensors' ends

    def add(self, size: int, indices: np.ndarray, old: np.ndarray, new: np.ndarray) -> None:
        """One tensor of `size` elements, whose words at `indices` go from `old` to `new`."""
        last = -1 - self._passed
        for start in range(0, indices.size, _PIECE):
            piece = slice(start, start + _PIECE)
            last = self._add_piece(last, indices[piece], old[piece], new[piece])
        self._passed = size - 1 - last

    def _add_piece(self, last: int, indices: np.ndarray, old: np.ndarray, new: np.ndarray) -> int:
        """Changes after position `last`; returns that of the last one."""
        gaps = np.empty(indices.size, np.int64)
        gaps[0] = indices[0] - last - 1
        np.subtract(indices[1:], indices[:-1], out=gaps[1:])
        gaps[1:] -= 1
        self._streams[0].append(self._gaps.compress(_gap_bytes(gaps).data))
        distance = _zigzag(_ordinals(new) - _ordinals(old))
        planes = distance.view(np.uint8).reshape(-1, self._itemsize)
        for plane, stream, compressor in zip(planes.T, self._streams[1:], self._planes, strict=True):
            stream.append(compressor.compress(np.ascontiguousarray(plane).data))
        return int(indices[-1])

    def finish(self) -> dict[str, np.ndarray]:
        """The streams, uint8 by name: "gaps", "ulps.0" (lowest byte), "ulps.1", ..."""
        finished = [
            b"".join([*stream, compressor.flush()])
            for stream, compressor in zip(self._streams, [self._gaps, *self._planes], strict=True)
        ]
        return {
            name: np.frombuffer(stream, np.uint8)
            for name, stream in zip(stream_names(self._itemsize), finished, strict=True)
        }


def stream_names(itemsize: int) -> list[str]:
    """Names of an update's streams, for elements of `itemsize` bytes."""
    return ["gaps", *(f"ulps.{plane}" for plane in range(itemsize))]


@dataclass(frozen=True)
class Delta:
    """A decoded update, still relative to its base.

    Attributes:
      sizes: elements of each tensor, in the order of the streams.
      starts: int64[tensors + 1], where each tensor's changes begin in `indices`.
      indices: int64[K], positions in the vector of all tensors.
      distances: unsigned integers[K] of the elements' width, to be added to ordinals.
    """

    sizes: Sequence[int]
    starts: np.ndarray
    indices: np.ndarray
    distances: np.ndarray

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(flat indices within the tensor, distances) of every tensor in turn."""
        offset = 0
        for size, start, end in zip(self.sizes, self.starts[:-1], self.starts[1:], strict=True):
            yield self.indices[start:end] - offset, self.distances[start:end]
            offset += size


def decode(streams: Mapping[str, np.ndarray], sizes: Sequence[int], itemsize: int, num_changed: int) -> Delta:
    """Inverse of an `Encoder`'s streams.

    Args:
      sizes: elements of each tensor, in the order in which they were added.
      num_changed: elements that changed; no more memory is taken than so many need.

    Raises:
      DeltaError: streams missing, damaged, or of tensors of other sizes.
    """
    names = stream_names(itemsize)
    if sorted(streams) != sorted(names):
        raise DeltaError(f"an update has streams {sorted(streams)}, expected {names}")
    total = sum(sizes)
    if num_changed > total:
        raise DeltaError(f"an update changes {num_changed} of {total} elements")
    # A gap has one byte, and one more for each 255 elements that it passes.
    steps = _decompress("gaps", streams["gaps"], num_changed + total // _GO_ON)
    ends = steps != _GO_ON
    if steps.size and not ends[-1]:
        raise DeltaError("the gaps break off within a gap")
    indices = np.cumsum(steps, dtype=np.int64)[ends]
    indices += np.arange(indices.size)
    if indices.size and indices[-1] >= total:
        raise DeltaError(f"an update changes element {indices[-1]} of {total}")
    if indices.size != num_changed:
        raise DeltaError(f"an update changes {indices.size} elements, expected {num_changed}")
    planes = [_decompress(name, streams[name], num_changed) for name in names[1:]]
    for name, plane in zip(names[1:], planes, strict=True):
        if plane.size != indices.size:
            raise DeltaError(f"stream {name} has {plane.size} bytes for {indices.size} changes")
    distances = np.stack(planes, axis=-1).reshape(-1).view(_WORDS[itemsize])
    starts = np.searchsorted(indices, np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))]))
    return Delta(sizes, starts, indices, distances)


def moved(old: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The words that lie at `distances` (zigzag-coded, in ulps) from the words `old`."""
    return _words_of(_ordinals(old) + _unzigzag(distances))


def _gap_bytes(gaps: np.ndarray) -> np.ndarray:
    """uint8: each gap as its quotient by 255 in bytes of 255, then its remainder."""
    longest = gaps.max()
    if longest < _GO_ON:
        return gaps.astype(np.uint8)
    narrow = gaps.astype(np.uint16) if longest < 1 << 16 else gaps  # divides four times as many at a time
    quotients = narrow // _GO_ON
    remainders = (narrow - _GO_ON * quotients).astype(np.uint8)
    ends = np.cumsum(quotients, dtype=np.int64)
    ends += np.arange(ends.size)
    encoded = np.full(int(ends[-1]) + 1, _GO_ON, np.uint8)
    encoded[ends] = remainders
    return encoded


def _decompress(name: str, stream: np.ndarray, most: int) -> np.ndarray:
    """The content of a zstd frame of at most `most` bytes; a frame of more is refused before it takes more memory."""
    if stream.dtype != np.uint8:
        raise DeltaError(f"stream {name} is of {stream.dtype.name}, expected uint8")
    data = stream.tobytes()
    try:
        declared = zstandard.frame_content_size(data)
        if declared > most:
            raise DeltaError(f"stream {name} declares {declared} bytes, expected at most {most}")
        content = zstandard.ZstdDecompressor().decompress(data, max_output_size=max(1, most), read_across_frames=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DeltaError(
            f"stream {name} of {stream.size} bytes is not one whole zstd frame of at most {most} bytes: {error}"
        ) from error
    return np.frombuffer(content, np.uint8)


def _ordinals(bits: np.ndarray) -> np.ndarray:
    """Words in the order of the numbers they stand for, as unsigned integers modulo their range.

    A negative number's magnitude bits are inverted, so that neighbouring floats, also -0 and +0, are neighbours here.
    """
    signed = bits.view(np.dtype(f"<i{bits.dtype.itemsize}"))
    return _inverted_if_negative(signed).view(bits.dtype)


def _words_of(ordinals: np.ndarray) -> np.ndarray:
    """Inverse of `_ordinals`, which is its own inverse."""
    return _ordinals(ordinals)


def _inverted_if_negative(signed: np.ndarray) -> np.ndarray:
    magnitude = signed.dtype.type(np.iinfo(signed.dtype).max)
    return signed ^ ((signed >> (8 * signed.dtype.itemsize - 1)) & magnitude)


def _zigzag(distance: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ...: small distances of either sign get small codes."""
    signed = distance.view(np.dtype(f"<i{distance.dtype.itemsize}"))
    return ((signed << 1) ^ (signed >> (8 * distance.dtype.itemsize - 1))).view(distance.dtype)


def _unzigzag(code: np.ndarray) -> np.ndarray:
    one = code.dtype.type(1)
    return (code >> one) ^ (~(code & one) + one)
