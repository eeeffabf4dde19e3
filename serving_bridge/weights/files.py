"""Files of tensors and their hashes: written once and hashed while written, read back only if they are the same bytes.

Free of torch and JAX: tensors are raw words with a shape and the name of a dtype, so that bfloat16 needs no library.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, cast

import msgspec
import numpy as np
import xxhash

from learner_jax.contracts import TensorEntry, WeightFile, quoted
from learner_jax.runtime import FILE_MODE, PlainFileError, WeirError, at, create_plain, open_plain, opened_folder

_READ_BYTES = 1 << 20
_MAX_HEADER = 100 * 2**20
#: Bytes of weights that are looked at together: they and what is computed of them stay in the cache.
_CHECKED_BYTES = 1 << 18
#: numpy's name of a dtype -> its code in the safetensors header
SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "uint8": "U8"}
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
_NAMES = {code: name for name, code in SAFETENSORS_DTYPES.items()}
_WORDS: dict[int, np.dtype] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}


class StoreError(WeirError, RuntimeError):
    """The weight store can't do what was asked; says what to change."""


class WeightIntegrityError(StoreError):
    """A stored file is not what its manifest says."""


class _Field(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor in the header of a file."""

    dtype: Literal["F32", "BF16", "F16", "U8"]
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=2**50)]]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0, le=2**50)], Annotated[int, msgspec.Meta(ge=0, le=2**50)]]


@dataclass(frozen=True)
class Tensor:
    """A tensor as raw words.

    Attributes:
      words: unsigned integers of the dtype's width, flat, row-major.
      dtype: by numpy's name.
    """

    words: np.ndarray
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        """The words of a float32, float16 or bfloat16 (ml_dtypes) array; copies only what is not contiguous."""
        return cls(words_of(array), array.shape, array.dtype.name)


def words_of(array: np.ndarray) -> np.ndarray:
    """The bits of an array's elements, flat, as unsigned integers of its width."""
    dtype: np.dtype = _WORDS[array.dtype.itemsize]
    return np.ascontiguousarray(array).reshape(-1).view(dtype)


def words_dtype(dtype: str) -> np.dtype:
    """The unsigned integers that hold the bits of a dtype, given by numpy's name."""
    return _WORDS[ITEMSIZES[dtype]]


def xxh3_128(words: np.ndarray) -> str:
    """XXH3-128 of a tensor's bytes, hexadecimal: not against an adversary, but at the speed of memory."""
    return xxhash.xxh3_128_hexdigest(words.view(np.uint8).data)


def entry_of(name: str, tensor: Tensor, digest: str = "") -> TensorEntry:
    """A tensor's line in a manifest; `digest` is its `xxh3_128` where that is known."""
    dtype = cast(Literal["float32", "bfloat16", "float16"], tensor.dtype)
    return TensorEntry(name=name, shape=list(tensor.shape), dtype=dtype, xxh3_128=digest or xxh3_128(tensor.words))


def content_sha256(entries: Sequence[TensorEntry]) -> str:
    """The identity of a model's weights: sha256 over names, shapes, dtypes and hashes of its tensors (hexadecimal)."""
    lines = (f"{entry.name} {entry.shape} {entry.dtype} {entry.xxh3_128}\n" for entry in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def not_finite(words: np.ndarray, dtype: str) -> int:
    """How many of the words stand for NaN or an infinity."""
    exponent = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}[dtype]
    mask = words.dtype.type(exponent)
    size = _CHECKED_BYTES // words.itemsize
    exponents, flags = np.empty(size, words.dtype), np.empty(size, bool)
    count = 0
    for start in range(0, words.size, size):
        block = words[start : start + size]
        of_block, is_special = exponents[: block.size], flags[: block.size]
        np.bitwise_and(block, mask, out=of_block)
        np.equal(of_block, mask, out=is_special)
        count += int(np.count_nonzero(is_special))
    return count


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    sync: bool = True,
    metadata: Mapping[str, str] | None = None,
    mode: int = FILE_MODE,
) -> WeightFile:
    """Writes the safetensors format, hashing while writing (the library would need a second copy or a second pass).

    The content is on the disk on return, unless `sync` is false. `metadata` is what other readers look for. By default
    the file is for its owner alone (`mode`).

    Format: 8 bytes little-endian header length, JSON header padded to 8 bytes, then the tensors back to back
    (https://github.com/huggingface/safetensors#format).
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.words.nbytes
        assert size == math.prod(tensor.shape) * ITEMSIZES[tensor.dtype]
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    prefix = memoryview(len(encoded).to_bytes(8, "little") + encoded)
    blocks = itertools.chain((prefix,), (tensor.words.view(np.uint8).data for tensor in tensors.values()))
    return _write(path, blocks, sync=sync, mode=mode)


def read_safetensors(path: Path, file: WeightFile) -> dict[str, Tensor]:
    """Reads a whole file, checked against size and hash of its manifest; every tensor's bytes are those of its shape.

    Raises:
      WeightIntegrityError: it is missing, no regular file, or not what the manifest says.
    """
    with _opened(path, file) as stream:
        data = np.fromfile(stream, np.uint8, count=file.num_bytes)
    check_file(path, file, data.size, hashlib.sha256(data.data).hexdigest())
    try:
        return dict(_tensors(data))
    except (ValueError, RecursionError) as error:
        raise WeightIntegrityError(f"{path} is no file of tensors: {quoted(str(error))}") from error


def mapped_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file that no manifest lists, read as they are looked at.

    Raises:
      WeightIntegrityError: it is no file of tensors.
    """
    try:
        yield from _tensors(np.memmap(path, np.uint8, "r"))
    except (ValueError, RecursionError) as error:
        raise WeightIntegrityError(f"{path} is no file of tensors: {quoted(str(error))}") from error


def _tensors(data: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    """Raises `ValueError` unless the bytes are a header and the tensors that it lists, back to back."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if data.size < 8 or length > min(data.size - 8, _MAX_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {data.size}")
    fields = msgspec.json.decode(data[8 : 8 + length].tobytes(), type=dict[str, msgspec.Raw])
    fields.pop("__metadata__", None)
    body = data[8 + length :]
    end = 0
    for name, raw in fields.items():
        field = msgspec.json.decode(raw, type=_Field)
        dtype = _NAMES[field.dtype]
        start, before = field.data_offsets[0], end
        end = start + math.prod(field.shape) * ITEMSIZES[dtype]
        if start != before or field.data_offsets[1] != end or end > body.size:
            raise ValueError(
                f"{quoted(name, 80)} is {dtype}{field.shape} at bytes {list(field.data_offsets)} of {body.size}, "
                f"expected {before} to {before + end - start}"
            )
        part = body[start:end]
        if part.ctypes.data % ITEMSIZES[dtype]:
            part = part.copy()
        yield name, Tensor(part.view(words_dtype(dtype)), tuple(field.shape), dtype)
    if end != body.size:
        raise ValueError(f"{body.size - end} bytes belong to no tensor")


def verify_file(path: Path, file: WeightFile) -> None:
    """Hashes a file piece by piece. Raises `WeightIntegrityError` naming it, expected and got."""
    digest = hashlib.sha256()
    with _opened(path, file) as stream:
        while chunk := stream.read(_READ_BYTES):
            digest.update(chunk)
    check_file(path, file, file.num_bytes, digest.hexdigest())


@contextmanager
def _opened(path: Path, file: WeightFile) -> Iterator[BinaryIO]:
    """A regular file of the manifest's size, in a folder that is no link.

    Raises:
      WeightIntegrityError: it is missing, or something else.
    """
    try:
        with opened_folder(path.parent.parent, path.parent.name) as folder:
            descriptor, num_bytes = open_plain(path.name, folder)
    except FileNotFoundError:
        raise WeightIntegrityError(f"{path} is missing, expected {file.num_bytes} bytes") from None
    except PlainFileError as error:
        raise WeightIntegrityError(f"{path}: {error}") from error
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if num_bytes != file.num_bytes:
            raise WeightIntegrityError(f"{path} has {num_bytes} bytes, expected {file.num_bytes}")
        yield stream


def check_file(path: Path | str, file: WeightFile, num_bytes: int, sha256: str) -> None:
    """Raises `WeightIntegrityError` unless a file's size and hash are those of the manifest."""
    if num_bytes != file.num_bytes:
        raise WeightIntegrityError(f"{path} has {num_bytes} bytes, expected {file.num_bytes}")
    if sha256 != file.sha256:
        raise WeightIntegrityError(f"{path} has sha256 {sha256}, expected {file.sha256}")


def _write(path: Path, blocks: Iterable[memoryview], *, sync: bool, mode: int) -> WeightFile:
    digest = hashlib.sha256()
    num_bytes = 0
    with at(path), os.fdopen(create_plain(path, mode), "wb") as stream:
        for block in blocks:
            digest.update(block)
            num_bytes += stream.write(block)
        stream.flush()
        if sync:
            os.fsync(stream.fileno())
    return WeightFile(name=path.name, num_bytes=num_bytes, sha256=digest.hexdigest())
