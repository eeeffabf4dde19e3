"""Which tensors a model folder holds, against those that its config.json asks for; free of JAX."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from learner_jax.contracts.families import EMBED, HEAD
from learner_jax.contracts.hf_files import WeightFileError, open_weights, some, weight_files
from learner_jax.contracts.model import ModelConfig, hf_shapes, is_buffer

_ROWS_AT_ONCE = 4096
_FLOAT_TYPES = ("F32", "BF16", "F16")


def check_weights(model_dir: str | Path, config: ModelConfig) -> None:
    """Checks names, shapes and dtypes of a model folder's tensors; reads values only of a tied head that is stored.

    Raises:
      WeightFileError: files missing or damaged; tensors missing, unexpected, of a wrong shape or dtype.
    """
    with contextlib.ExitStack() as stack:
        check_tensors(OpenWeights(Path(model_dir), stack), Path(model_dir), config)


class OpenWeights:
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


def check_tensors(checkpoint: OpenWeights, model_dir: Path, config: ModelConfig) -> None:
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


def _check_dtype(checkpoint: OpenWeights, name: str) -> None:
    code = checkpoint.view(name).get_dtype()
    if code in _FLOAT_TYPES:
        return
    reason = "save the model in one of these" if code == "F64" else "quantised weights can't be trained"
    raise WeightFileError(
        f"{checkpoint.file_of[name]}: tensor {name} has dtype {code}, expected one of {', '.join(_FLOAT_TYPES)}; "
        f"{reason}"
    )


def _check_tied_head(checkpoint: OpenWeights) -> None:
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


def _same_values(checkpoint: OpenWeights, name: str, other: str) -> bool:
    """Whether two matrices are equal; holds a few rows of them in memory."""
    shape = checkpoint.view(name).get_shape()
    if shape != checkpoint.view(other).get_shape():
        return False
    return all(
        np.array_equal(checkpoint.read(name, rows), checkpoint.read(other, rows))
        for start in range(0, shape[0], _ROWS_AT_ONCE)
        for rows in [(slice(start, min(start + _ROWS_AT_ONCE, shape[0])), slice(None))]
    )
