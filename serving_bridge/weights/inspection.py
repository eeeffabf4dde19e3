"""What a weight store holds, for people: versions at a glance, differences, damage, and going back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from learner_jax.contracts import ContractError, WeightManifest, quoted
from serving_bridge.weights.delta import num_changes
from serving_bridge.weights.files import ITEMSIZES, StoreError, mapped_safetensors, xxh3_128
from serving_bridge.weights.reader import read_path, read_version
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionHeader, VersionWriter


@dataclass(frozen=True)
class VersionRow:
    """One version at a glance.

    Attributes:
      manifest: None if it can't be read.
      full_bytes: what the version would take whole.
      has_anchor: whether it was stored once more, whole.
      error: why the manifest can't be read.
    """

    version: int
    manifest: WeightManifest | None
    full_bytes: int
    has_anchor: bool
    error: str = ""


@dataclass(frozen=True)
class TensorDifference:
    """How far two versions of one tensor are apart: elements that differ in their bits, of all of them."""

    name: str
    shape: tuple[int, ...]
    num_changed: int
    size: int


def rows(store: WeightStore) -> list[VersionRow]:
    """All versions, in ascending order."""
    found = []
    for version in store.versions():
        has_anchor = store.has_anchor(version)
        try:
            manifest = store.manifest(version)
        except (StoreError, ContractError) as error:
            found.append(VersionRow(version, None, 0, has_anchor, str(error)))
        else:
            found.append(VersionRow(version, manifest, full_bytes(manifest), has_anchor))
    return found


def tensor_sizes(manifest: WeightManifest) -> list[int]:
    """Elements of each tensor of a version."""
    return [math.prod(entry.shape) for entry in manifest.tensors]


def full_bytes(manifest: WeightManifest) -> int:
    """Bytes of a version's tensors, whole."""
    sizes = zip(manifest.tensors, tensor_sizes(manifest), strict=True)
    return sum(ITEMSIZES[entry.dtype] * size for entry, size in sizes)


def differences(store: WeightStore, old: int, new: int) -> Iterator[TensorDifference]:
    """Compares two versions tensor by tensor, in the newer's order; holds both in memory.

    Raises:
      StoreError: one of them is gone or damaged, or they are not of one model.
    """
    before = read_version(store, old)
    for name, tensor in read_version(store, new).items():
        other = before.get(name)
        if other is None or (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            held = f"{other.dtype}{list(other.shape)}" if other is not None else "missing"
            raise StoreError(
                f"{name} is {tensor.dtype}{list(tensor.shape)} in version {new} and {held} in version {old}; expected "
                f"versions of one model"
            )
        changed = num_changes(other.words, tensor.words)
        yield TensorDifference(name, tensor.shape, changed, tensor.words.size)


def difference_from(folder: Path, manifest: WeightManifest) -> str | None:
    """How the tensors of a Hugging Face folder differ from those of a version; None where all bits are the same.

    Raises:
      WeightIntegrityError: a file of the folder holds no tensors.
    """
    expected = {entry.name: entry for entry in manifest.tensors}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in mapped_safetensors(path):
            entry = expected.pop(name, None)
            if entry is None:
                return f"{path} has a tensor {quoted(name, 80)}, which version {manifest.version} has not"
            if (tensor.dtype, list(tensor.shape)) != (entry.dtype, entry.shape):
                return (
                    f"{name} is {tensor.dtype}{list(tensor.shape)} in {path} and {entry.dtype}{entry.shape} in version "
                    f"{manifest.version}"
                )
            if xxh3_128(tensor.words) != entry.xxh3_128:
                return f"{name} of {path} has other values than in version {manifest.version}"
    if expected:
        return f"{folder} lacks {len(expected)} tensors of version {manifest.version}, e.g. {min(expected)}"
    return None


def problem(store: WeightStore, version: int) -> str | None:
    """Loads a version as a replica that has nothing would, and says what is wrong with it, None if nothing is."""
    try:
        path = store.path(version)
        for manifest in path:
            store.verify(manifest)
        for _ in read_path(store, path):
            pass
    except (StoreError, ContractError, OSError) as error:
        return str(error)
    return None


def republish(store: WeightStore, version: int) -> WeightManifest:
    """Publishes the weights of an older version once more, whole, as the newest: how a fleet goes back.

    Raises:
      StoreError: there is no such version, or it is damaged.
    """
    manifest = store.best_manifest(version)
    tensors = read_version(store, version)
    header = VersionHeader(manifest.step, manifest.golden)
    return VersionWriter(store).publish_full(tensors, manifest.tensors, header)
