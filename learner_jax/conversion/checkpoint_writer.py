"""Writes a checkpoint whose arrays were never whole in memory: chunks as files first; then Orbax commits them.

The chunks are plain files (zarr 2 without OCDBT or compression), so that each can be written, and found again after a
kill, by itself. Moments are zeros and stored compressed. To `Checkpoints.restore` it is a checkpoint like any other.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from learner_jax.checkpoints import ITEM, Manifest, Position, array_specs, write_hashes
from learner_jax.contracts import ModelConfig, Parameter, WeightFileError, hf_tensor_names, parameters
from learner_jax.conversion.checkpoint_reader import Block, Index, cut
from learner_jax.conversion.direct_io import File
from learner_jax.conversion.hf_layout import Weights
from learner_jax.conversion.hf_writer import in_slabs
from learner_jax.conversion.work_folder import Settler, Work, require_space
from learner_jax.models import abstract_parameters
from learner_jax.runtime import this_code
from learner_jax.settings import OptimizerSettings
from learner_jax.training import init_state, make_optimizer

#: What reading one chunk takes.
_CHUNK_BYTES = 64 << 20
#: Chunks of vectors hold as many layers as fit.
_SMALL_BYTES = 1 << 20


def _chunk_shape(row: Parameter, config: ModelConfig) -> tuple[int, ...]:
    """Shape of a parameter's chunks: one layer, or some rows of a large one; of small parameters several layers."""
    layer = 4 * math.prod(row.shape)
    if layer > _CHUNK_BYTES:
        rows = max(_CHUNK_BYTES // (layer // row.shape[0]), 1)
        inner = (rows, *row.shape[1:])
    else:
        inner = row.shape
    if not row.stacked:
        return inner
    return (min(max(_SMALL_BYTES // layer, 1), config.num_layers), *inner)


def stage_parameters(
    work: Work, stage: Path, weights: Weights, config: ModelConfig, progress: Callable[[int, int], None]
) -> None:
    """Writes every parameter's chunks, reading the next one meanwhile."""
    jobs = []
    for row in parameters(config):
        shape = (config.num_layers, *row.shape) if row.stacked else row.shape
        chunk = _chunk_shape(row, config)
        folder = stage / f"params.{row.path}"
        _create(folder, shape, chunk, np.dtype(np.float32), compressed=False)
        jobs += [(Block(row, index), folder, chunk) for index in cut(shape, chunk, 4, limit=0)]
    sizes = [4 * int(np.prod([part.stop - part.start for part in block.index])) for block, _, _ in jobs]
    todo = [number for number in range(len(jobs)) if str(number) not in work.finished]
    require_space(stage, sum(sizes[number] for number in todo))
    done = sum(sizes) - sum(sizes[number] for number in todo)
    progress(done, sum(sizes))

    def read(number: int) -> list[np.ndarray]:
        block = jobs[number][0]
        names = list(hf_tensor_names(block.row, config))
        if not block.row.stacked:
            return [weights.read_part(names[0], block.index)]
        return [weights.read_part(name, block.index[1:]) for name in names[block.index[0]]]

    with Settler(work) as settler, ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        ahead = [reader.submit(read, number) for number in todo[:1]]
        for position, number in enumerate(todo):
            parts = ahead.pop().result()
            ahead += [reader.submit(read, following) for following in todo[position + 1 : position + 2]]
            block, folder, chunk = jobs[number]
            file = _open_chunk(folder, chunk, block.index)
            offset = 0
            for at, part in enumerate(parts):
                for _, rows in in_slabs((slice(0, None),) * part.ndim, part):
                    _check_finite(rows, block, at, weights, config)
                    file.write(offset, rows, np.dtype(np.float32))
                    offset += 4 * rows.size
            settler.wrote(str(number), sizes[number], [file], close=True)
            done += sizes[number]
            progress(done, sum(sizes))
        settler.finish()


def _check_finite(values: np.ndarray, block: Block, layer: int, weights: Weights, config: ModelConfig) -> None:
    if not np.isfinite(values).all():
        names = list(hf_tensor_names(block.row, config))
        name = names[block.index[0].start + layer] if block.row.stacked else names[0]
        raise WeightFileError(
            f"{weights.tensors[name].file}: tensor {name} has NaN or infinite values, expected none; fetch the file "
            f"again or go back to an earlier checkpoint"
        )


def _open_chunk(folder: Path, chunk: Sequence[int], index: Index) -> File:
    """The file of the chunk that begins where `index` does; it has its full size, and is zeros where it is new."""
    return File(folder / _chunk_name(index, chunk), size=4 * math.prod(chunk))


def _chunk_name(index: Index, chunk: Sequence[int]) -> str:
    return ".".join(str(part.start // size) for part, size in zip(index, chunk, strict=True)) or "0"


@dataclass(frozen=True)
class _Staged:
    """Stands in the tree for an array whose files are in `folder`."""

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype


class _StagedHandler(ocp.type_handlers.TypeHandler):
    """Lets Orbax save arrays that are on the disk already, by linking their files; they read as NumPy arrays."""

    def typestr(self) -> str:
        return "np.ndarray"

    async def serialize(self, values: Sequence[_Staged], infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            shutil.copytree(value.folder, os.fspath(info.path), copy_function=os.link)
        return []

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        raise NotImplementedError


def commit(stage: Path, out: Path, config: ModelConfig, settings: OptimizerSettings, *, seed: int) -> None:
    """Makes `out` a folder of checkpoints with step 0, of parameters that are written in `stage` and a new optimizer.

    Args:
      settings: of the optimizer; its moments are zero.
      seed: of the run's random key.
    """
    optimizer = make_optimizer(settings)
    state = jax.eval_shape(lambda params: init_state(params, optimizer, seed=seed), abstract_parameters(config))
    tree = {"params": state.params, "opt_state": state.opt_state, "step": state.step, "key": state.key}
    key = np.asarray(jax.random.key_data(jax.random.key(seed)))

    def staged(path: Any, leaf: Any) -> _Staged:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        folder = stage / name
        if not name.startswith("params."):
            shutil.rmtree(folder, ignore_errors=True)  # of a try that was killed
            _write_small(folder, leaf, key if name == "key" else None)
        return _Staged(folder, tuple(leaf.shape), leaf.dtype)

    leaves = jax.tree_util.tree_map_with_path(staged, tree)
    manifest = Manifest(Position(0, -1, 0, ()), "", {}, this_code(), {"state": array_specs(tree)})
    registry = ocp.type_handlers.create_type_handler_registry((_Staged, _StagedHandler()))
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry),
        ITEM: ocp.JsonCheckpointHandler(),
    }
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    with ocp.CheckpointManager(out.absolute(), options=options, item_handlers=handlers) as manager:
        items = {"state": ocp.args.PyTreeSave(leaves), ITEM: ocp.args.JsonSave(manifest.encode())}
        manager.save(0, args=ocp.args.Composite(**items))
    write_hashes(out / "0")


def _write_small(folder: Path, leaf: Any, value: np.ndarray | None) -> None:
    """Writes an array of zeros, whose chunks are all the same file, or a small one of one chunk."""
    first, *_ = cut(leaf.shape, (1,) * leaf.ndim, leaf.dtype.itemsize)
    chunk = tuple(part.stop for part in first)
    array = _create(folder, leaf.shape, chunk, leaf.dtype, compressed=True)
    array[first].write(np.zeros((), leaf.dtype) if value is None else value).result()
    data = (folder / _chunk_name(first, chunk)).read_bytes()
    for index in cut(leaf.shape, chunk, leaf.dtype.itemsize, limit=0):
        (folder / _chunk_name(index, chunk)).write_bytes(data)


def _create(folder: Path, shape: Sequence[int], chunk: Sequence[int], dtype: np.dtype, *, compressed: bool) -> Any:
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {"chunks": list(chunk), "compressor": {"id": "zstd", "level": 1} if compressed else None},
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, open=True, dtype=str(dtype), shape=list(shape)).result()
