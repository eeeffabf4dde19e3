"""New versions in a weight store: a number first, then the files, the manifest last and at once.

Free of torch and JAX.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from learner_jax.contracts import (
    MANIFEST_SCHEMA,
    MAX_VERSION,
    ContractError,
    GoldenPrompt,
    TensorEntry,
    WeightManifest,
    encode_manifest,
)
from serving_bridge.weights.checks import checked_tensors
from serving_bridge.weights.files import (
    StoreError,
    Tensor,
    WeightIntegrityError,
    content_sha256,
    entry_of,
)
from serving_bridge.weights.shelf import (
    ANCHOR_MANIFEST_NAME,
    ANCHOR_NAME,
    MANIFEST_NAME,
    UPDATE_NAME,
    WEIGHTS_NAME,
)
from serving_bridge.weights.store import WeightStore

_MAX_CLAIMS = 1000


@dataclass(frozen=True)
class VersionHeader:
    """What is said of a version beside its tensors.

    Attributes:
      step: optimizer steps behind its weights.
      golden: prompts with log-probs computed with these very weights.
      version: its number, as `VersionWriter.claim` gave it; None to claim one when it is stored.
    """

    step: int
    golden: Sequence[GoldenPrompt]
    version: int | None = None


class VersionWriter:
    """Adds versions to a store; several processes never get the same number."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store

    def claim(self) -> int:
        """Takes the next version number; one that is never published stays taken and never exists.

        Raises:
          StoreError: other processes keep taking numbers.
        """
        highest = 0
        for _ in range(_MAX_CLAIMS):
            # A list may be older than a number that was refused just now.
            version = max([highest, *self._store.claimed()]) + 1
            if version > MAX_VERSION:
                raise StoreError(
                    f"no version is left in {self._store.address}: {self._store.shelf.place(MAX_VERSION)} has the "
                    f"highest number; remove it if it is none of the run's, or set store.weights to another folder"
                )
            if self._store.shelf.claim(version):
                return version
            highest = version
        raise StoreError(
            f"could not claim a version in {self._store.address} in {_MAX_CLAIMS} tries; who else publishes there?"
        )

    def publish(
        self,
        tensors: Iterable[tuple[str, np.ndarray]],
        *,
        step: int,
        golden: Sequence[GoldenPrompt],
        version: int | None = None,
    ) -> WeightManifest:
        """Stores a full set of tensors under HF names as a policy version and returns its manifest.

        Args:
          tensors: (HF name, array) pairs; float32, float16 or bfloat16 (ml_dtypes) arrays of any shape.
          step: optimizer steps behind these weights.
          golden: prompts with log-probs computed with these very weights.
          version: as `claim` gave it; claimed here by default.

        Raises:
          ValueError: no tensors, a name given twice, an unsupported dtype, values that are not finite, or a malformed
            golden prompt.
          StoreError: the disk is full, or the folder belongs to another run. Nothing becomes visible.
        """
        whole = checked_tensors(tensors)
        entries = [entry_of(name, tensor) for name, tensor in whole.items()]
        return self.publish_full(whole, entries, VersionHeader(step, golden, version))

    def publish_full(
        self, tensors: Mapping[str, Tensor], entries: Sequence[TensorEntry], header: VersionHeader
    ) -> WeightManifest:
        """As `publish`, for tensors that were checked and hashed."""
        return self._publish(WEIGHTS_NAME, tensors, entries, header, base_version=None, num_changed=None)

    def publish_update(
        self,
        streams: Mapping[str, np.ndarray],
        entries: Sequence[TensorEntry],
        header: VersionHeader,
        *,
        base_version: int,
        num_changed: int,
    ) -> WeightManifest:
        """Stores a version as its difference from `base_version`, in the streams of `weights.delta`."""
        tensors = {name: Tensor(stream, stream.shape, "uint8") for name, stream in streams.items()}
        return self._publish(UPDATE_NAME, tensors, entries, header, base_version=base_version, num_changed=num_changed)

    def add_anchor(self, manifest: WeightManifest, tensors: Mapping[str, Tensor]) -> WeightManifest:
        """Stores an existing version once more, whole; replicas load it by that from now on.

        Args:
          manifest: the version's own, which in the store may be damaged.

        Raises:
          WeightIntegrityError: these are not that version's weights.
        """
        version = manifest.version
        entries = [entry_of(name, tensor) for name, tensor in tensors.items()]
        if content_sha256(entries) != manifest.content_sha256:
            raise WeightIntegrityError(f"the tensors given as an anchor of version {version} are not its weights")
        shelf = self._store.shelf
        with _place_for(tensors, version, self._store.address):
            shelf.open(version)
            file = shelf.replace_tensors(version, ANCHOR_NAME, tensors)
        anchor = WeightManifest(
            schema=MANIFEST_SCHEMA,
            version=version,
            base_version=None,
            format="full",
            step=manifest.step,
            parent=manifest.parent,
            run=manifest.run,
            content_sha256=manifest.content_sha256,
            num_changed=None,
            files=[file],
            tensors=entries,
            golden=manifest.golden,
        )
        shelf.write_last(version, ANCHOR_MANIFEST_NAME, encode_manifest(anchor))
        return anchor

    def _publish(
        self,
        file_name: str,
        tensors: Mapping[str, Tensor],
        entries: Sequence[TensorEntry],
        header: VersionHeader,
        *,
        base_version: int | None,
        num_changed: int | None,
    ) -> WeightManifest:
        for prompt in header.golden:
            if len(prompt.logprobs) != len(prompt.tokens) - 1:
                raise ValueError(
                    f"a golden prompt of {len(prompt.tokens)} tokens has {len(prompt.logprobs)} log-probs, "
                    f"expected {len(prompt.tokens) - 1}"
                )
        parent = self._parent()
        version = self.claim() if header.version is None else header.version
        shelf = self._store.shelf
        shelf.open(version)
        try:
            with _place_for(tensors, version, self._store.address):
                file = shelf.write_tensors(version, file_name, tensors)
                format_: Literal["full", "sparse"] = "full" if base_version is None else "sparse"
                manifest = WeightManifest(
                    schema=MANIFEST_SCHEMA,
                    version=version,
                    base_version=base_version,
                    format=format_,
                    step=header.step,
                    parent=parent,
                    run=self._store.run,
                    content_sha256=content_sha256(entries),
                    num_changed=num_changed,
                    files=[file],
                    tensors=list(entries),
                    golden=list(header.golden),
                )
                shelf.write_last(version, MANIFEST_NAME, encode_manifest(manifest))
        except BaseException:
            shelf.empty(version)
            raise
        return manifest

    def _parent(self) -> int | None:
        """The highest version. Raises `StoreError` if the folder belongs to another run."""
        versions = self._store.versions()
        for version in reversed(versions):
            try:
                run = self._store.best_manifest(version).run
            except (StoreError, ContractError):
                continue  # damaged: does not say whose it is
            if run != self._store.run:
                raise StoreError(
                    f"weight store {self._store.address} belongs to run {run!r}, expected {self._store.run!r}; set "
                    f"store.weights to another folder"
                )
            break
        return versions[-1] if versions else None


@contextmanager
def _place_for(tensors: Mapping[str, Tensor], version: int, root: str) -> Iterator[None]:
    """Says of a full disk, and of a folder that somebody removed, what to do about it."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(
            f"version {version} in {root} was removed while it was written: newer versions were published meanwhile, "
            f"and it looked like what a crash had left; let only one learner run"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = sum(tensor.words.nbytes for tensor in tensors.values())
        raise StoreError(
            f"no space for version {version} in {root}: it needs {needed} bytes; free some, lower "
            f"store.keep_versions, or set store.weights to a larger disk"
        ) from error
