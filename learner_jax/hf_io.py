"""Hugging Face safetensors to our parameter tree and back, by numpy alone: one table row at a time, bytes kept."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from learner_jax.hf_files import WeightFileError, open_weights, some, weight_files
from learner_jax.hf_names import EMBED, HEAD, ModelConfig, Parameter, hf_shapes, hf_tensor_names, is_buffer, parameters
from learner_jax.model import Params

#: Files of a model folder, other than its weights, that a loader may need.
COMPANION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)

_ROWS_AT_ONCE = 4096
_FLOAT_TYPES = ("F32", "BF16", "F16")
_EXPORT_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class _Checkpoint:
    """Open safetensors files of one model folder, with every tensor's file known. Owns the file handles."""

    def __init__(self, model_dir: Path, stack: contextlib.ExitStack) -> None:
        self.file_of: dict[str, Path] = {}
        self._handles: dict[Path, Any] = {}
        for path, promised in weight_files(model_dir).items():
            handle = self._handles[path] = stack.enter_context(open_weights(path, promised))
            self.file_of.update(dict.fromkeys(handle.keys(), path))

    def view(self, name: str) -> Any:
        return self._handles[self.file_of[name]].get_slice(name)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Part of one tensor as fp32. Raises `WeightFileError` on NaN or infinite values."""
        view = self.view(name)
        values = np.asarray(view[index or (slice(None),) * len(view.get_shape())]).astype(np.float32)
        if not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise WeightFileError(
                f"{self.file_of[name]}: tensor {name} has {count} NaN or infinite values, expected none; "
                f"fetch the file again or go back to an earlier checkpoint"
            )
        return values


def check_weights(model_dir: str | Path, config: ModelConfig) -> None:
    """Checks names, shapes and dtypes of a model folder's tensors; reads values only of a tied head that is stored.

    Raises:
      WeightFileError: files missing or damaged; tensors missing, unexpected, of a wrong shape or dtype.
    """
    with contextlib.ExitStack() as stack:
        _check_tensors(_Checkpoint(Path(model_dir), stack), Path(model_dir), config)


def load_parameters(model_dir: str | Path, config: ModelConfig, *, shardings: Params | None = None) -> Params:
    """Reads a Hugging Face model folder into fp32 master parameters.

    Args:
      model_dir: folder with model.safetensors, or shards and model.safetensors.index.json; f32, bf16 or f16 on disk.
      config: shape of the model, from `hf_names.read_model_config(model_dir)`.
      shardings: nested dict as of `sharding.parameter_shardings`; each process then reads only what its devices hold.
        None puts whole arrays on the default device.

    Raises:
      WeightFileError: files missing or damaged; tensors missing, unexpected, of a wrong shape, dtype or not finite.
    """
    wanted = flatten_dict(shardings, sep=".") if shardings is not None else {}
    flat = {}
    with contextlib.ExitStack() as stack:
        checkpoint = _Checkpoint(Path(model_dir), stack)
        _check_tensors(checkpoint, Path(model_dir), config)
        for row in parameters(config):
            names = list(hf_tensor_names(row, config))
            shape = (config.num_layers, *row.shape) if row.stacked else row.shape
            part = functools.partial(_read_part, checkpoint, row, names)
            if shardings is None:
                flat[row.path] = jax.numpy.asarray(part(None))
            else:
                flat[row.path] = jax.make_array_from_callback(shape, wanted[row.path], part)
    tree: Params = unflatten_dict(flat, sep=".")
    return tree


def _read_part(
    checkpoint: _Checkpoint, row: Parameter, names: Sequence[str], index: tuple[slice, ...] | None
) -> np.ndarray:
    """fp32 values of one table row at `index` of its (stacked) shape; reads no other layer."""
    index = index or ()
    if not row.stacked:
        return checkpoint.read(names[0], index)
    layers = names[index[0]] if index else names
    return np.stack([checkpoint.read(name, index[1:]) for name in layers])


def export_tensors(params: Params, config: ModelConfig, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face name and value of every tensor, in table order, layers unstacked.

    `dtype` is float32 or bfloat16. Casts on the host with ml_dtypes (round to nearest even), so that every producer of
    these bytes agrees bit by bit. Takes jax or numpy leaves; one device-to-host transfer per table row, all processes
    taking part if the leaf spans several. Each yielded array owns its memory.

    Raises:
      ValueError: unknown dtype.
    """
    if dtype not in _EXPORT_DTYPES:
        raise ValueError(f"dtype {dtype!r} can't be exported; known: {', '.join(_EXPORT_DTYPES)} (publish_dtype)")
    flat = flatten_dict(params, sep=".")
    for row in parameters(config):
        host = _to_host(flat[row.path])
        layers = host if row.stacked else host[None]
        for name, value in zip(hf_tensor_names(row, config), layers, strict=True):
            yield name, value.astype(_EXPORT_DTYPES[dtype])


def _check_tensors(checkpoint: _Checkpoint, model_dir: Path, config: ModelConfig) -> None:
    expected = hf_shapes(config)
    held = {name for name in checkpoint.file_of if not is_buffer(name)}
    if config.tie_word_embeddings and HEAD in held:
        _check_tied_head(checkpoint)
        held.remove(HEAD)
    if missing := expected.keys() - held:
        hint = "; set tie_word_embeddings to true if the head is the embedding" if missing == {HEAD} else ""
        raise WeightFileError(
            f"{model_dir} lacks {len(missing)} of {len(expected)} tensors: {some(missing)}; "
            f"config.json and weights must be of the same model{hint}"
        )
    if unexpected := held - expected.keys():
        raise WeightFileError(
            f"{model_dir} holds {len(unexpected)} tensors that config.json does not account for: {some(unexpected)}; "
            f"config.json and weights must be of the same model"
        )
    for name, shape in expected.items():
        view, path = checkpoint.view(name), checkpoint.file_of[name]
        if tuple(view.get_shape()) != shape:
            raise WeightFileError(
                f"{path}: tensor {name} has shape {tuple(view.get_shape())}, expected {shape} by config.json; "
                f"config.json and weights must be of the same model"
            )
        _check_dtype(checkpoint, name)


def _check_dtype(checkpoint: _Checkpoint, name: str) -> None:
    code = checkpoint.view(name).get_dtype()
    if code in _FLOAT_TYPES:
        return
    reason = "save the model in one of these" if code == "F64" else "quantised weights can't be trained"
    raise WeightFileError(
        f"{checkpoint.file_of[name]}: tensor {name} has dtype {code}, expected one of {', '.join(_FLOAT_TYPES)}; "
        f"{reason}"
    )


def _check_tied_head(checkpoint: _Checkpoint) -> None:
    """Raises `WeightFileError` unless a head that is stored, though tied, is the embedding."""
    if EMBED not in checkpoint.file_of:
        raise WeightFileError(
            f"{checkpoint.file_of[HEAD]}: config.json ties the output head to the embedding, but only {HEAD} is "
            f"stored; save the model with {EMBED}"
        )
    _check_dtype(checkpoint, HEAD)
    _check_dtype(checkpoint, EMBED)
    if not _same_values(checkpoint, HEAD, EMBED):
        raise WeightFileError(
            f"{checkpoint.file_of[HEAD]}: config.json ties the output head to the embedding, but {HEAD} differs "
            f"from {EMBED}; set tie_word_embeddings to false to use it"
        )


def _same_values(checkpoint: _Checkpoint, name: str, other: str) -> bool:
    """Whether two matrices are equal; holds a few rows of them in memory."""
    shape = checkpoint.view(name).get_shape()
    if shape != checkpoint.view(other).get_shape():
        return False
    return all(
        np.array_equal(checkpoint.read(name, rows), checkpoint.read(other, rows))
        for start in range(0, shape[0], _ROWS_AT_ONCE)
        for rows in [(slice(start, min(start + _ROWS_AT_ONCE, shape[0])), slice(None))]
    )


def _to_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
