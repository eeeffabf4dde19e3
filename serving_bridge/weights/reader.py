"""Reads policy versions back from a weight store, tensor by tensor: anchors and the updates after them, all checked.

Free of torch and JAX; a worker of the fleet and the command-line tools read by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from learner_jax.contracts import TensorEntry, WeightManifest, manifest_sha256
from serving_bridge.weights import delta as weight_delta
from serving_bridge.weights.checks import check_content
from serving_bridge.weights.files import (
    ITEMSIZES,
    Tensor,
    WeightIntegrityError,
    not_finite,
    words_dtype,
    xxh3_128,
)
from serving_bridge.weights.store import WeightStore

#: Gives the tensor of the version that the updates start from.
BaseTensor = Callable[[TensorEntry], Tensor]


@dataclass(frozen=True)
class Changed:
    """A tensor as it is after some updates, and where they changed it.

    Attributes:
      indices: int64[K], ascending flat positions whose bits differ from the base's; None where there is no base.
      old: the base's words at `indices`, None where there is no base.
    """

    entry: TensorEntry
    tensor: Tensor
    indices: np.ndarray | None
    old: np.ndarray | None


def read_path(
    store: WeightStore, manifests: Sequence[WeightManifest], base: BaseTensor | None = None
) -> Iterator[Changed]:
    """Tensors of the last of `manifests`, in its order, by loading all of them in turn.

    Args:
      manifests: as `WeightStore.path` gives them.
      base: tensors of the version that the first of `manifests` applies to, if that is an update.

    Raises:
      WeightIntegrityError: a file is not what its manifest says, the manifests do not fit together, or a tensor is not
        what the last manifest says: then the base was not either.
    """
    first, last = manifests[0], manifests[-1]
    for manifest in manifests:
        check_content(manifest)
    _check_same_model(manifests)
    whole = None if first.format == "sparse" else _read_full(store, first)
    updates = [_read_update(store, manifest) for manifest in manifests if manifest.format == "sparse"]
    if whole is None and base is None:
        raise WeightIntegrityError(
            f"version {first.version} applies to version {first.base_version}, whose tensors are not at hand"
        )
    for position, entry in enumerate(last.tensors):
        start = whole.pop(entry.name) if whole is not None else _from_base(base, entry)
        yield _updated(entry, start, [update[position] for update in updates], track=whole is None)


def manifests_to_load(
    store: WeightStore, manifest: WeightManifest, applied: int | None, sealed: str = ""
) -> list[WeightManifest]:
    """What to load, in order, to bring weights of version `applied` to that of `manifest`, for `read_path`.

    Args:
      sealed: `manifest_sha256` of the manifest that somebody checked, with its signature where there is one. The store
        may have been written since: it is not asked for manifests again, and files are read by the sha256 in this one.

    Raises:
      WeightIntegrityError: the manifest says something else than the one that was checked.
      StoreError: a version on the way is gone.
    """
    if not sealed:
        return store.path(manifest.version, applied)
    if (got := manifest_sha256(manifest)) != sealed:
        raise WeightIntegrityError(
            f"manifest of version {manifest.version} in {store.address} has sha256 {got}, expected {sealed}: it was "
            f"changed after it was checked"
        )
    return [manifest]


def read_version(store: WeightStore, version: int) -> dict[str, Tensor]:
    """All tensors of a version. Raises `WeightIntegrityError` or `StoreError` as `read_path` and `path`."""
    return {changed.entry.name: changed.tensor for changed in read_path(store, store.path(version))}


def _from_base(base: BaseTensor | None, entry: TensorEntry) -> Tensor:
    assert base is not None
    tensor = base(entry)
    if (list(tensor.shape), tensor.dtype) != (entry.shape, entry.dtype):
        raise WeightIntegrityError(
            f"{entry.name} is {tensor.dtype}{list(tensor.shape)} before the update, expected {entry.dtype}{entry.shape}"
        )
    return tensor


def _updated(
    entry: TensorEntry, start: Tensor, updates: Sequence[tuple[np.ndarray, np.ndarray]], *, track: bool
) -> Changed:
    words = start.words
    touched = [indices for indices, _ in updates if indices.size]
    indices = np.zeros(0, np.int64)
    if touched:
        words = words.copy()
        for where, distances in updates:
            words[where] = weight_delta.moved(words.take(where), distances)
        indices = touched[0] if len(touched) == 1 else np.unique(np.concatenate(touched))
    if (got := xxh3_128(words)) != entry.xxh3_128:
        raise WeightIntegrityError(
            f"{entry.name} has xxh3_128 {got} after the update, expected {entry.xxh3_128}: the update or the weights "
            f"before it are not what they are said to be"
        )
    fresh = words[indices] if track else words
    if count := not_finite(fresh, entry.dtype):
        raise WeightIntegrityError(f"{entry.name} holds {count} values that are not finite")
    tensor = Tensor(words, tuple(entry.shape), entry.dtype)
    return Changed(entry, tensor, indices if track else None, start.words[indices] if track else None)


def _read_full(store: WeightStore, manifest: WeightManifest) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in manifest.files:
        for name, tensor in store.read(manifest.version, file).items():
            if name in tensors:
                raise WeightIntegrityError(f"tensor {name} is in two files of version {manifest.version}")
            tensors[name] = tensor
    entries = {entry.name: entry for entry in manifest.tensors}
    if tensors.keys() != entries.keys():
        raise WeightIntegrityError(
            f"the files of version {manifest.version} hold other tensors than its manifest lists: "
            f"{sorted(tensors.keys() ^ entries.keys())[:4]}"
        )
    for name, tensor in tensors.items():
        entry = entries[name]
        if (list(tensor.shape), tensor.dtype) != (entry.shape, entry.dtype):
            raise WeightIntegrityError(
                f"{name} is {tensor.dtype}{list(tensor.shape)} in its file, expected {entry.dtype}{entry.shape}"
            )
    return tensors


def _read_update(store: WeightStore, manifest: WeightManifest) -> list[tuple[np.ndarray, np.ndarray]]:
    """(indices, distances) of every tensor in the manifest's order."""
    streams: Mapping[str, Tensor] = {}
    for file in manifest.files:
        streams = store.read(manifest.version, file)
    sizes = [int(np.prod(entry.shape, dtype=np.int64)) for entry in manifest.tensors]
    itemsize = ITEMSIZES[manifest.tensors[0].dtype]
    try:
        words = {name: stream.words for name, stream in streams.items()}
        return list(weight_delta.decode(words, sizes, itemsize, manifest.num_changed or 0))
    except weight_delta.DeltaError as error:
        raise WeightIntegrityError(f"update of version {manifest.version}: {error}") from error


def _check_same_model(manifests: Sequence[WeightManifest]) -> None:
    last = manifests[-1]
    model = [(entry.name, entry.shape, entry.dtype) for entry in last.tensors]
    for manifest in manifests:
        if [(entry.name, entry.shape, entry.dtype) for entry in manifest.tensors] != model:
            raise WeightIntegrityError(
                f"versions {manifest.version} and {last.version} do not hold the same tensors in the same order"
            )
    widths = {words_dtype(entry.dtype) for entry in last.tensors}
    if len(widths) > 1 and any(manifest.format == "sparse" for manifest in manifests):
        raise WeightIntegrityError(f"version {last.version} is an update of tensors of several widths")
