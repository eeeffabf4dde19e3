"""Where every byte of a model folder's weights lies: planned before the first is written, read without mapping files.

A file is laid out as the safetensors library lays it out (tensors of one dtype by name, the header without spaces), so
that a file written in pieces has the bytes of one that the library saved whole.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from learner_jax.contracts import SINGLE_FILE, WeightFileError, open_weights, weight_files
from learner_jax.conversion.direct_io import File, write_at

#: safetensors' name of a dtype -> ours.
DTYPES = {"F32": np.dtype("<f4"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2")}
_CODES = {"float32": "F32", "bfloat16": "BF16"}
_MAX_HEADER_BYTES = 100_000_000  # what safetensors itself accepts

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Placed:
    """One tensor in a file; `offset` is that of its first byte from the file's beginning."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class PlannedFile:
    name: str
    header: bytes
    size: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Files of a model folder's weights; `index` is the text of the index file, None where one file holds all."""

    files: tuple[PlannedFile, ...]
    tensors: Mapping[str, Placed]
    index: str | None


def plan(shapes: Mapping[str, tuple[int, ...]], dtype: str, max_shard_bytes: int) -> Layout:
    """Lays tensors out in files of at most `max_shard_bytes` of tensors, in order; a larger tensor has one for itself.

    Args:
      dtype: "float32" or "bfloat16".
    """
    code = _CODES[dtype]
    sizes = {name: math.prod(shape) * DTYPES[code].itemsize for name, shape in shapes.items()}
    groups: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        file, tensors = _planned(SINGLE_FILE, groups[0], shapes, code)
        return Layout((file,), tensors, None)
    files: list[PlannedFile] = []
    placed: dict[str, Placed] = {}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file, tensors = _planned(f"model-{number:05d}-of-{len(groups):05d}.safetensors", names, shapes, code)
        files.append(file)
        placed |= tensors
        weight_map |= dict.fromkeys(names, file.name)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    return Layout(tuple(files), placed, json.dumps(index, indent=1))


def _planned(
    file: str, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], code: str
) -> tuple[PlannedFile, dict[str, Placed]]:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without this entry
    position, begins = 0, {}
    for name in sorted(names):
        end = position + math.prod(shapes[name]) * DTYPES[code].itemsize
        entries[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [position, end]}
        begins[name], position = position, end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    tensors = {name: Placed(file, code, shapes[name], len(header) + begin) for name, begin in begins.items()}
    return PlannedFile(file, header, len(header) + position, tuple(names)), tensors


def runs(placed: Placed, index: Index) -> Iterator[tuple[int, int]]:
    """(offset, number of bytes) of the stretches of a file that hold one part of a tensor, in C order."""
    steps = [part.indices(size) for part, size in zip(index, placed.shape, strict=True)]
    lengths = [stop - start for start, stop, _ in steps]
    cut = max((dim for dim, size in enumerate(placed.shape) if lengths[dim] != size), default=0)
    itemsize = DTYPES[placed.dtype].itemsize
    strides = [itemsize * math.prod(placed.shape[dim + 1 :]) for dim in range(len(placed.shape))]
    nbytes = itemsize * math.prod(lengths[cut:])
    start = placed.offset + sum(begin * stride for (begin, _, _), stride in zip(steps, strides, strict=True))
    for position in itertools.product(*(range(length) for length in lengths[:cut])):
        yield start + sum(at * stride for at, stride in zip(position, strides[:cut], strict=True)), nbytes


def write_part(file: File, placed: Placed, index: Index, values: np.ndarray) -> None:
    """Writes part of a tensor, rounded to the file's dtype, to where it belongs."""
    dtype = DTYPES[placed.dtype]
    stretches = list(runs(placed, index))
    if len(stretches) == 1:
        file.write(stretches[0][0], values, dtype)
        return
    data = byte_view(values.astype(dtype))
    done = 0
    for offset, nbytes in stretches:
        write_at(file.descriptor, data[done : done + nbytes], offset)
        done += nbytes


def byte_view(values: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not copied; of any dtype, also those that know no buffer protocol."""
    return values.reshape(-1).view(np.uint8).data


class Weights:
    """The weight files of a local model folder, read by position; owns their descriptors.

    Attributes:
      tensors: name -> where it is.
    Raises:
      WeightFileError: files are missing, or are no safetensors files.
    """

    def __init__(self, model_dir: Path) -> None:
        self.tensors: dict[str, Placed] = {}
        self._files: dict[str, File] = {}
        with contextlib.ExitStack() as opened:
            for path, promised in weight_files(model_dir).items():
                with open_weights(path, promised):  # for its check of the header
                    pass
                file = self._files[str(path)] = File(path)
                opened.callback(file.close)
                self.tensors |= _read_header(path, file)
            self._stack = opened.pop_all()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_part(self, name: str, index: Index) -> np.ndarray:
        """Part of a tensor in its own dtype."""
        placed = self.tensors[name]
        lengths = [len(range(*part.indices(size))) for part, size in zip(index, placed.shape, strict=True)]
        parts = [self._read(placed, offset, nbytes) for offset, nbytes in runs(placed, index)]
        data = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return data.view(DTYPES[placed.dtype]).reshape(lengths)

    def _read(self, placed: Placed, offset: int, nbytes: int) -> np.ndarray:
        data = self._files[placed.file].read(offset, nbytes)
        if len(data) < nbytes:
            raise WeightFileError(f"{placed.file} ends in the middle of a tensor, at byte {offset}; fetch it again")
        return data


def _read_header(path: Path, file: File) -> dict[str, Placed]:
    size = file.size()
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    try:
        if not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"its header should have {length} bytes")
        header = json.loads(file.read(8, length).tobytes())
        tensors = {
            name: Placed(str(path), entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        }
        for name, placed in tensors.items():
            end = 8 + length + header[name]["data_offsets"][1]
            if end > size or (placed.dtype in DTYPES and placed.offset + placed.nbytes != end):
                raise ValueError(f"tensor {name} should end at byte {end}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(
            f"{path} ({size} bytes) is not a whole safetensors file: {error}; fetch or copy it again"
        ) from error
    return tensors
