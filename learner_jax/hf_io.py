"""Hugging Face safetensors to our parameter tree and back, by numpy alone: one table row at a time, bytes kept."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from learner_jax.hf_names import ModelConfig, Parameter, hf_shapes, hf_tensor_names, parameters
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

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BUFFER_SUFFIX = ".rotary_emb.inv_freq"  # written by transformers before 4.32; follows from the config
_ROWS_AT_ONCE = 4096
_FLOAT_TYPES = ("F32", "BF16", "F16")
_EXPORT_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class WeightFileError(ValueError):
    """Weight files are missing, damaged, or not those of the model: says file, tensor, expected, got."""


class _Checkpoint:
    """Open safetensors files of one model folder, with every tensor's file known. Owns the file handles."""

    def __init__(self, model_dir: Path, stack: contextlib.ExitStack) -> None:
        self.file_of: dict[str, Path] = {}
        self._handles: dict[Path, Any] = {}
        for path, promised in weight_files(model_dir).items():
            handle = stack.enter_context(_open(path))
            self._handles[path] = handle
            held = set(handle.keys())
            if promised is not None and promised != held:
                raise WeightFileError(
                    f"{path}: {INDEX_FILE} and the file disagree on tensors {_some(promised ^ held)}; "
                    f"fetch the folder again"
                )
            self.file_of.update(dict.fromkeys(held, path))

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


def weight_files(model_dir: Path) -> dict[Path, set[str] | None]:
    """Safetensors files of a folder, each with the tensors that the index promises (None: there is no index)."""
    if not model_dir.is_dir():
        raise WeightFileError(f"model folder {model_dir} does not exist; set model.path to a Hugging Face folder")
    index_path = model_dir / INDEX_FILE
    if not index_path.is_file():
        single = model_dir / SINGLE_FILE
        if not single.is_file():
            held = _some(path.name for path in model_dir.iterdir())
            raise WeightFileError(
                f"{model_dir} holds neither {SINGLE_FILE} nor {INDEX_FILE}, only {held}; "
                f"expected safetensors weights (convert .bin or .pth files first)"
            )
        return {single: None}
    try:
        weight_map = json.loads(index_path.read_text())["weight_map"]
        files: dict[Path, set[str] | None] = {}
        for name, file_name in weight_map.items():
            names = files.setdefault(model_dir / file_name, set())
            assert names is not None
            names.add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(f"{index_path} is not an index with a weight_map: {error!r}; fetch it again") from error
    for path in files:
        if not path.is_file():
            raise WeightFileError(f"{path} is missing, though {INDEX_FILE} names it; fetch the folder again")
    return files


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise WeightFileError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}; fetch or copy it again"
        ) from error


def _check_tensors(checkpoint: _Checkpoint, model_dir: Path, config: ModelConfig) -> None:
    expected = hf_shapes(config)
    held = {name for name in checkpoint.file_of if not name.endswith(_BUFFER_SUFFIX)}
    if config.tie_word_embeddings and _HEAD in held:
        if not _same_values(checkpoint, _HEAD, _EMBED):
            raise WeightFileError(
                f"{checkpoint.file_of[_HEAD]}: config.json ties the output head to the embedding, but {_HEAD} differs "
                f"from {_EMBED}; set tie_word_embeddings to false to use it"
            )
        held.remove(_HEAD)
    if missing := expected.keys() - held:
        hint = "; set tie_word_embeddings to true if the head is the embedding" if missing == {_HEAD} else ""
        raise WeightFileError(
            f"{model_dir} lacks {len(missing)} of {len(expected)} tensors: {_some(missing)}; "
            f"config.json and weights must be of the same model{hint}"
        )
    if unexpected := held - expected.keys():
        raise WeightFileError(
            f"{model_dir} holds {len(unexpected)} tensors that config.json does not account for: {_some(unexpected)}; "
            f"config.json and weights must be of the same model"
        )
    for name, shape in expected.items():
        view, path = checkpoint.view(name), checkpoint.file_of[name]
        if tuple(view.get_shape()) != shape:
            raise WeightFileError(
                f"{path}: tensor {name} has shape {tuple(view.get_shape())}, expected {shape} by config.json; "
                f"config.json and weights must be of the same model"
            )
        if view.get_dtype() not in _FLOAT_TYPES:
            raise WeightFileError(
                f"{path}: tensor {name} has dtype {view.get_dtype()}, expected one of {', '.join(_FLOAT_TYPES)}; "
                f"quantised weights can't be trained"
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


def _some(names: Iterable[str], limit: int = 5) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:limit]) + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "") or "none"
