"""Weights that were exchanged for others with the same tensor hashes: xxh3 is no cryptographic hash."""

from __future__ import annotations

import msgspec
import pytest

from learner_jax.contracts import WeightManifest, encode_manifest
from serving_bridge.weights import Tensor, WeightStore, write_safetensors, xxh3_128
from serving_bridge.weights.shelf import MANIFEST_NAME


def forge(store: WeightStore, manifest: WeightManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanges a whole version's weights, and the manifest, which then names the new file by its true sha256.

    The collisions are made up: reading finds the old hash for each new tensor.
    """
    (file,) = manifest.files
    hashes = {entry.name: entry.xxh3_128 for entry in manifest.tensors}
    others = {name: _negated(tensor) for name, tensor in store.read(manifest.version, file).items()}
    found = {tensor.words.tobytes(): hashes[name] for name, tensor in others.items()}
    path = store.folder(manifest.version) / file.name
    path.unlink()
    changed = msgspec.structs.replace(manifest, files=[write_safetensors(path, others)])
    (path.parent / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    honest = xxh3_128
    monkeypatch.setattr(
        "serving_bridge.weights.reader.xxh3_128", lambda words: found.get(words.tobytes()) or honest(words)
    )


def _negated(tensor: Tensor) -> Tensor:
    sign = tensor.words.dtype.type(1 << (8 * tensor.words.itemsize - 1))
    return Tensor(tensor.words ^ sign, tensor.shape, tensor.dtype)
