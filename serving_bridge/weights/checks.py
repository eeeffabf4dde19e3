"""What a version must be before anything is made of it: tensors that may be served, a manifest that fits itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from learner_jax.contracts import WeightManifest
from serving_bridge.weights.files import (
    ITEMSIZES,
    SAFETENSORS_DTYPES,
    Tensor,
    WeightIntegrityError,
    content_sha256,
    not_finite,
)

_FLOAT_DTYPES = tuple(name for name in SAFETENSORS_DTYPES if name != "uint8")
#: Bounds on what a version's files take: beside a full version's bytes (an update has three streams of two at most), a
#: header, and what of that each tensor takes.
_MOST_OF_FULL, _HEADER_BYTES, _ENTRY_BYTES = 2, 1 << 20, 4096


def checked_tensors(tensors: Iterable[tuple[str, np.ndarray]]) -> dict[str, Tensor]:
    """A model's tensors by name. Raises `ValueError` for what no version may hold."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors:
        array = np.asarray(tensor)
        if name in whole:
            raise ValueError(f"tensor {name} was given twice")
        if array.dtype.name not in _FLOAT_DTYPES:
            raise ValueError(f"{name} has dtype {array.dtype}, expected one of {', '.join(_FLOAT_DTYPES)}")
        whole[name] = Tensor.of(array)
        check_finite(name, whole[name].words, array.dtype.name)
    if not whole:
        raise ValueError("publish got no tensors")
    return whole


def check_finite(name: str, words: np.ndarray, dtype: str) -> None:
    """Raises `ValueError` for values that no replica would take."""
    if count := not_finite(words, dtype):
        raise ValueError(f"{name} has {count} values that are not finite; they must not be served")


def check_content(manifest: WeightManifest) -> None:
    """Raises `WeightIntegrityError` unless a manifest's content hash fits its own list of tensors."""
    content = content_sha256(manifest.tensors)
    if content != manifest.content_sha256:
        raise WeightIntegrityError(
            f"manifest of version {manifest.version}: its tensors give content_sha256 {content}, "
            f"expected {manifest.content_sha256}"
        )
    if not manifest.tensors:
        raise WeightIntegrityError(f"manifest of version {manifest.version} lists no tensors")
    most = _MOST_OF_FULL * sum(math.prod(entry.shape) * ITEMSIZES[entry.dtype] for entry in manifest.tensors)
    if manifest.num_bytes > most + _HEADER_BYTES + _ENTRY_BYTES * len(manifest.tensors):
        raise WeightIntegrityError(
            f"the files of version {manifest.version} have {manifest.num_bytes} bytes, more than its tensors can need"
        )
