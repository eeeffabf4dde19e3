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

from learner_jax.contracts import ModelConfig, OpenWeights, Parameter, check_tensors, hf_tensor_names, parameters
from learner_jax.models.parameters import Params

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

_EXPORT_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


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
        checkpoint = OpenWeights(Path(model_dir), stack)
        check_tensors(checkpoint, Path(model_dir), config)
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
    checkpoint: OpenWeights, row: Parameter, names: Sequence[str], index: tuple[slice, ...] | None
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


def _to_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
