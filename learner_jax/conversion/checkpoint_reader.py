"""Reads the policy's parameters out of a checkpoint chunk by chunk: each chunk once, whoever wrote it and however cut.

Arrays are opened with TensorStore directly, in Orbax's formats (OCDBT or one folder an array, zarr or zarr3, from one
or several hosts). Moments, a value function and a reference policy in the same checkpoint are not read.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import tensorstore as ts

from learner_jax.checkpoints import TREE, CheckpointError, Found, find_checkpoint, require_whole
from learner_jax.contracts import ModelConfig, Parameter, parameters
from learner_jax.conversion.direct_io import supports_direct

#: Chunks smaller than this are read together.
_BLOCK_BYTES = 16 << 20
#: Of larger blocks none is read while another is used.
_OVERLAP_BYTES = 96 << 20

_DTYPES = {name: np.dtype(kind) for name, kind in (("float32", "f4"), ("float16", "f2"), ("bfloat16", "bfloat16"))}

Index = tuple[slice, ...]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Source:
    """The policy's parameters in one checkpoint.

    Attributes:
      folder: the checkpoint, `<directory>/<step>`.
      arrays: path in the parameter tree -> open TensorStore array; reading is up to `stream`.
      files: name, size and time of every file of arrays: tells whether the checkpoint is still the same.
    """

    folder: Path
    arrays: Mapping[str, Any]
    files: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Block:
    """Whole chunks of one array that are read together: `index` of row `row` of the table in `hf_names`."""

    row: Parameter
    index: Index


@contextlib.contextmanager
def open_source(
    path: str | os.PathLike[str],
    config: ModelConfig,
    *,
    check_hashes: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Source]:
    """Opens the parameters that a model of this shape has, of a checkpoint or of the newest in a folder of them.

    Args:
      check_hashes: whether to compare all files with their hashes first.
      say: told in a sentence where no hashes vouch for the checkpoint's content.
    Raises:
      CheckpointError: there is no checkpoint, it is damaged, or it is of another model.
    """
    found = find_checkpoint(path)
    require_whole(found, hashes=check_hashes, say=say)
    with open_found(found, config) as source:
        yield source


@contextlib.contextmanager
def open_found(found: Found, config: ModelConfig) -> Iterator[Source]:
    """As `open_source`, of a checkpoint that is known to be whole."""
    yield _opened(found, config)


def _opened(found: Found, config: ModelConfig) -> Source:
    local, folder = found.item, found.folder
    try:
        tree = json.loads((local / TREE).read_text())
        names = [ast.literal_eval(key) for key in tree["tree_metadata"]]
        prefix = ("params",) if any(name[0] == "params" for name in names) else ()
        held = {".".join(map(str, name[len(prefix) :])): name for name in names if name[: len(prefix)] == prefix}
    except (ValueError, KeyError, TypeError, SyntaxError, OSError, IndexError) as error:
        raise CheckpointError(f"{found.item / TREE} is not Orbax's description of a tree: {error!r}") from error
    arrays = {}
    for row in parameters(config):
        if row.path not in held:
            raise CheckpointError(
                f"checkpoint {folder} has no parameter {row.path}; it has {_some(sorted(held))}; "
                f"config.json and checkpoint must be of the same model"
            )
        arrays[row.path] = _open(local, ".".join(map(str, held[row.path])), tree, folder)
        _check(row, config, arrays[row.path], folder)
    return Source(folder, arrays, _files(found.item))


def _open(folder: Path, name: str, tree: Mapping[str, Any], checkpoint: Path) -> Any:
    ocdbt = tree.get("use_ocdbt")
    if ocdbt is None:
        ocdbt = (folder / "manifest.ocdbt").exists()
    base = os.fspath(folder)
    path = f"{base}/" if ocdbt else f"{base}/{name}/"
    mode = {"mode": "direct"} if supports_direct(folder / TREE) else {}
    files = {"driver": "file", "path": path, "file_io_mode": mode}
    store = {"driver": "ocdbt", "base": files, "path": f"{name}/", "cache_pool": "cache_pool#ocdbt"}
    spec = {
        "driver": "zarr3" if tree.get("use_zarr3") else "zarr",
        "kvstore": store if ocdbt else files,
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
        "fill_missing_data_reads": not tree.get("store_array_data_equal_to_fill_value", False),
    }
    try:
        return ts.open(spec, open=True, context=_context()).result()
    except (ValueError, OSError) as error:
        raise CheckpointError(f"checkpoint {checkpoint}: array {name} can't be opened: {error}") from error


def _context() -> Any:
    """Keeps no chunk: what is read is read once. The second pool holds OCDBT's index."""
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}, "cache_pool#ocdbt": {"total_bytes_limit": 16 << 20}})


def _check(row: Parameter, config: ModelConfig, array: Any, folder: Path) -> None:
    expected = (config.num_layers, *row.shape) if row.stacked else row.shape
    if tuple(array.shape) != expected:
        raise CheckpointError(
            f"checkpoint {folder}: {row.path} has shape {tuple(array.shape)}, expected {expected} by config.json; "
            f"config.json and checkpoint must be of the same model"
        )
    if array.dtype.name not in _DTYPES:
        raise CheckpointError(
            f"checkpoint {folder}: {row.path} has dtype {array.dtype.name}, expected one of {', '.join(_DTYPES)}"
        )


def blocks(source: Source, config: ModelConfig) -> Iterator[Block]:
    """Cuts every parameter into blocks of whole chunks, in the table's order."""
    for row in parameters(config):
        array = source.arrays[row.path]
        for index in cut(array.shape, array.chunk_layout.read_chunk.shape, array.dtype.numpy_dtype.itemsize):
            yield Block(row, index)


def cut(shape: Sequence[int], chunk: Sequence[int], itemsize: int, limit: int = _BLOCK_BYTES) -> Iterator[Index]:
    """Parts of an array along its chunks, of up to `limit` bytes or one chunk; whole rows where the limit allows.

    A grid dimension that a chunk does not divide ends in a smaller part.
    """
    size = [min(part, whole) for part, whole in zip(chunk, shape, strict=True)]
    for dim in reversed(range(len(shape))):
        others = itemsize * math.prod(size) // max(size[dim], 1)
        grown = limit // max(others, 1) // max(chunk[dim], 1) * chunk[dim]
        size[dim] = min(max(size[dim], grown), shape[dim])
    starts = (range(0, whole, max(part, 1)) for whole, part in zip(shape, size, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(
            slice(start, min(start + part, whole)) for start, part, whole in zip(corner, size, shape, strict=True)
        )


def stream(source: Source, jobs: Sequence[tuple[Key, Block]]) -> Iterator[tuple[Key, Block, np.ndarray]]:
    """Reads blocks in order, the next while the caller has this one, unless both are too large for that.

    Each array is valid until the next is asked for: two buffers serve all of them.

    Raises:
      CheckpointError: a chunk is missing or damaged.
    """
    sizes = [_nbytes(source, block) for _, block in jobs]
    buffers = itertools.cycle([_buffer(max(sizes, default=0)) for _ in range(2)])
    # The store holds a chunk as it is in the file, and where it is compressed as an array too, while it is read.
    limit = _OVERLAP_BYTES // (2 if any(map(_is_compressed, source.arrays.values())) else 1)
    ahead: tuple[np.ndarray, Any] | None = None
    buffer = next(buffers)

    def emptied(buffer: mmap.mmap) -> mmap.mmap:
        if len(buffer) > limit:  # what an earlier block left goes back before the store takes as much
            buffer.madvise(mmap.MADV_DONTNEED)
        return buffer

    for position, (key, block) in enumerate(jobs):
        values, future = ahead or _start(source, block, emptied(buffer))
        ahead = None
        _result(source, block, future)
        if position + 1 < len(jobs) and min(sizes[position], sizes[position + 1]) <= limit:
            buffer = next(buffers)
            ahead = _start(source, jobs[position + 1][1], emptied(buffer))
        yield key, block, values


def _nbytes(source: Source, block: Block) -> int:
    lengths = [part.stop - part.start for part in block.index]
    return math.prod(lengths) * int(source.arrays[block.row.path].dtype.numpy_dtype.itemsize)


def _is_compressed(array: Any) -> bool:
    metadata = array.spec().to_json().get("metadata", {})
    return metadata.get("compressor") is not None or "codecs" in metadata


def _buffer(nbytes: int) -> mmap.mmap:
    """Memory of its own, in large pages where the kernel has them."""
    buffer = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _start(source: Source, block: Block, buffer: mmap.mmap) -> tuple[np.ndarray, Any]:
    array = source.arrays[block.row.path]
    nbytes = _nbytes(source, block)
    kind = np.dtype(ml_dtypes.bfloat16) if array.dtype.name == "bfloat16" else array.dtype.numpy_dtype
    values = np.frombuffer(buffer, np.uint8, nbytes).view(kind)
    values = values.reshape([part.stop - part.start for part in block.index])
    part = array[block.index].translate_to[(0,) * values.ndim]
    return values, ts.array(values).write(part)  # shares memory with `values`


def _result(source: Source, block: Block, future: Any) -> None:
    try:
        future.result()
    except (ValueError, OSError) as error:
        where = ",".join(f"{part.start}:{part.stop}" for part in block.index)
        raise CheckpointError(
            f"checkpoint {source.folder}: {block.row.path}[{where}] can't be read: {error}; the checkpoint is "
            f"damaged, go back to an earlier one"
        ) from error


def _files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = []
    for path in (path for path in folder.rglob("*") if not path.is_dir()):
        here = path.stat()
        found.append((os.fspath(path.relative_to(folder)), here.st_size, here.st_mtime_ns))
    return tuple(sorted(found))


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "none"
