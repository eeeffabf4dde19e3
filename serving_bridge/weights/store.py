"""A folder of immutable weight versions: files first, the manifest last, by atomic rename.

Layout: `root/v00000007/{weights.safetensors | update.safetensors, manifest.json}`. A folder without a manifest is a
version that never came to exist; its number stays taken. `anchor.safetensors` and `anchor.json` beside them hold the
same version once more, whole, where someone asked for it in `root/wanted/`. Free of torch and JAX.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from learner_jax.contracts import (
    MANIFEST_SCHEMA,
    MAX_MANIFEST_BYTES,
    MAX_VERSION,
    ContractError,
    GoldenPrompt,
    TensorEntry,
    WeightFile,
    WeightManifest,
    decode_manifest,
    encode_manifest,
    quoted,
)
from learner_jax.runtime import FOLDER_MODE, PlainFileError, is_folder, is_regular, make_folder, read_plain
from serving_bridge.weights.checks import check_content, checked_tensors
from serving_bridge.weights.files import (
    StoreError,
    Tensor,
    WeightIntegrityError,
    content_sha256,
    entry_of,
    sync_folder,
    verify_file,
    write_durably,
    write_safetensors,
)
from serving_bridge.weights.folders import folder_name, numbers, own_folder

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.safetensors"
UPDATE_NAME = "update.safetensors"
ANCHOR_MANIFEST_NAME = "anchor.json"
ANCHOR_NAME = "anchor.safetensors"

_MAX_REASON_BYTES = 10_000
_WANTED = "wanted"
_MAX_CLAIMS = 1000


class WeightStore:
    """Policy versions of one run under one folder.

    Many processes may read while one publishes. Version numbers start at 1, only go up and are never reused: a number
    is claimed by making its folder, and the highest folder is never deleted.
    """

    def __init__(self, root: str | Path, run: str) -> None:
        self.root = Path(root)
        self.run = run

    def folder(self, version: int) -> Path:
        return self.root / folder_name(version)

    def versions(self) -> list[int]:
        """Versions that exist (have a manifest), in ascending order."""
        return [
            version for version in numbers(self.root, stat.S_ISDIR) if is_regular(self.folder(version) / MANIFEST_NAME)
        ]

    def newest(self) -> WeightManifest | None:
        """Manifest of the highest version, None while nothing is published."""
        versions = self.versions()
        return self.best_manifest(versions[-1]) if versions else None

    def manifest(self, version: int) -> WeightManifest:
        """Reads one version's manifest.

        Raises:
          StoreError: there is no such version.
          ContractError: the manifest is damaged or of another schema.
        """
        try:
            return self._read_manifest(version, MANIFEST_NAME)
        except FileNotFoundError:
            raise StoreError(
                f"weight store {self.root} holds no version {version}; it holds {self.versions()}"
            ) from None

    def best_manifest(self, version: int) -> WeightManifest:
        """The manifest to load a version by: that of its anchor, if one was added, else its own."""
        try:
            return self._read_manifest(version, ANCHOR_MANIFEST_NAME)
        except FileNotFoundError:
            return self.manifest(version)

    def path(self, version: int, applied: int | None = None) -> list[WeightManifest]:
        """What to load, in order, to bring weights of version `applied` (None: of no version) to `version`.

        That is the updates between the two, or the newest anchor before `version` and the updates after it.

        Raises:
          StoreError: a version on the way is gone; names it.
        """
        steps: list[WeightManifest] = []
        current: int | None = version
        while current is not None and current != applied:
            try:
                manifest = self.best_manifest(current)
            except StoreError as error:
                if current == version:
                    raise
                raise StoreError(f"version {version} builds on version {current}, which is gone: {error}") from error
            steps.append(manifest)
            current = manifest.base_version
        return steps[::-1]

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
        return self.publish_full(whole, entries, step=step, golden=golden, version=version)

    def publish_full(
        self,
        tensors: Mapping[str, Tensor],
        entries: Sequence[TensorEntry],
        *,
        step: int,
        golden: Sequence[GoldenPrompt],
        version: int | None = None,
    ) -> WeightManifest:
        """As `publish`, for tensors that were checked and hashed."""
        return self._publish(
            WEIGHTS_NAME, tensors, entries, step=step, golden=golden, version=version, base_version=None, changed=None
        )

    def publish_update(
        self,
        streams: Mapping[str, np.ndarray],
        entries: Sequence[TensorEntry],
        *,
        base_version: int,
        num_changed: int,
        step: int,
        golden: Sequence[GoldenPrompt],
        version: int | None = None,
    ) -> WeightManifest:
        """Stores a version as its difference from `base_version`, in the streams of `weight_delta`."""
        tensors = {name: Tensor(stream, stream.shape, "uint8") for name, stream in streams.items()}
        return self._publish(
            UPDATE_NAME,
            tensors,
            entries,
            step=step,
            golden=golden,
            version=version,
            base_version=base_version,
            changed=num_changed,
        )

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
        folder = own_folder(self.folder(version))
        temporary = folder / f".{ANCHOR_NAME}.{os.getpid()}"
        with _space_for(tensors, version, self.root):
            try:
                file = write_safetensors(temporary, tensors)
                temporary.replace(folder / ANCHOR_NAME)
            finally:
                temporary.unlink(missing_ok=True)
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
            files=[WeightFile(ANCHOR_NAME, file.num_bytes, file.sha256)],
            tensors=entries,
            golden=manifest.golden,
        )
        write_durably(folder / ANCHOR_MANIFEST_NAME, encode_manifest(anchor))
        return anchor

    def has_anchor(self, version: int) -> bool:
        """Whether a version was stored once more, whole."""
        return is_regular(self.folder(version) / ANCHOR_MANIFEST_NAME)

    def want_anchor(self, version: int, reason: str) -> None:
        """Asks whoever publishes to store a version once more, whole: what is there can't be loaded."""
        folder = self.root / _WANTED
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        write_durably(own_folder(folder) / folder_name(version), quoted(reason).encode())

    def wanted_anchors(self) -> list[int]:
        """Versions that `want_anchor` asked for and that nobody has taken yet, in ascending order."""
        return numbers(self.root / _WANTED, stat.S_ISREG)

    def take_wanted(self, version: int) -> str | None:
        """Takes a request for an anchor back and returns its reason; None if there is none."""
        path = self.root / _WANTED / folder_name(version)
        try:
            reason = read_plain(self.root, path.name, inside=_WANTED, max_bytes=_MAX_REASON_BYTES)
        except FileNotFoundError:
            return None
        except PlainFileError as error:
            reason = str(error).encode()
        path.unlink(missing_ok=True)
        return quoted(reason.decode(errors="replace"))

    def verify(self, manifest: WeightManifest) -> None:
        """Hashes every file of a version. Raises `WeightIntegrityError` naming file, expected and got."""
        check_content(manifest)
        for file in manifest.files:
            verify_file(self.folder(manifest.version) / file.name, file)

    def collect(self, keep: int, in_use: Collection[int] = ()) -> list[int]:
        """Deletes all but the newest `keep` versions, those in use, and what these build on; returns what it deleted.

        The manifest goes first, so that a version is never seen with files missing. Leftovers of crashed publishes
        below the oldest kept version go too.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1: the newest version is never deleted")
        versions = self.versions()
        if not versions:
            return []
        kept: set[int] = set()
        for version in {*versions[-keep:], *(version for version in in_use if version in versions)}:
            current: int | None = version
            while current is not None and current in versions and current not in kept:
                kept.add(current)
                current = self._base_of(current)
        deleted = [version for version in versions if version not in kept]
        oldest = versions[-keep:][0]
        for version in self._claimed():
            if version < oldest and version not in kept:
                folder = self.folder(version)
                if not is_folder(folder):
                    folder.unlink(missing_ok=True)  # a link or file that took the number; what it names stays
                    continue
                for name in (MANIFEST_NAME, ANCHOR_MANIFEST_NAME):
                    (folder / name).unlink(missing_ok=True)
                sync_folder(folder)
                shutil.rmtree(folder)
        return deleted

    def claim(self) -> int:
        """Takes the next version number; one that is never published stays taken and never exists.

        Raises:
          StoreError: other processes keep taking numbers.
        """
        make_folder(self.root)
        for _ in range(_MAX_CLAIMS):
            version = max(self._claimed(), default=0) + 1
            if version > MAX_VERSION:
                raise StoreError(
                    f"no version is left in {self.root}: {self.folder(MAX_VERSION)} has the highest number; remove it "
                    f"if it is none of the run's, or set store.weights to another folder"
                )
            try:
                self.folder(version).mkdir(mode=FOLDER_MODE)
            except FileExistsError:
                continue
            sync_folder(self.root)
            return version
        raise StoreError(f"could not claim a version in {self.root} in {_MAX_CLAIMS} tries; who else publishes there?")

    def _parent(self) -> int | None:
        """The highest version. Raises `StoreError` if the folder belongs to another run."""
        versions = self.versions()
        for version in reversed(versions):
            try:
                run = self.best_manifest(version).run
            except (StoreError, ContractError):
                continue  # damaged: does not say whose it is
            if run != self.run:
                raise StoreError(
                    f"weight store {self.root} belongs to run {run!r}, expected {self.run!r}; set store.weights to "
                    f"another folder"
                )
            break
        return versions[-1] if versions else None

    def _base_of(self, version: int) -> int | None:
        try:
            return self.best_manifest(version).base_version
        except (StoreError, ContractError):
            return None  # damaged: nothing can be loaded by it

    def _claimed(self) -> list[int]:
        return numbers(self.root, lambda mode: True)

    def _read_manifest(self, version: int, name: str) -> WeightManifest:
        folder = self.folder(version)
        path = folder / name
        try:
            payload = read_plain(self.root, name, inside=folder.name, max_bytes=MAX_MANIFEST_BYTES)
        except PlainFileError as error:
            raise WeightIntegrityError(f"{path}: {error}") from error
        manifest = decode_manifest(payload)
        if manifest.version != version:
            raise WeightIntegrityError(f"{path} says version {manifest.version}, expected {version}")
        if manifest.base_version is not None and manifest.base_version >= version:
            raise WeightIntegrityError(f"{path} builds on version {manifest.base_version}, expected an older one")
        return manifest

    def _publish(
        self,
        file_name: str,
        tensors: Mapping[str, Tensor],
        entries: Sequence[TensorEntry],
        *,
        step: int,
        golden: Sequence[GoldenPrompt],
        version: int | None,
        base_version: int | None,
        changed: int | None,
    ) -> WeightManifest:
        for prompt in golden:
            if len(prompt.logprobs) != len(prompt.tokens) - 1:
                raise ValueError(
                    f"a golden prompt of {len(prompt.tokens)} tokens has {len(prompt.logprobs)} log-probs, "
                    f"expected {len(prompt.tokens) - 1}"
                )
        parent = self._parent()
        version = self.claim() if version is None else version
        folder = own_folder(self.folder(version))
        try:
            with _space_for(tensors, version, self.root):
                file = write_safetensors(folder / file_name, tensors)
                format_: Literal["full", "sparse"] = "full" if base_version is None else "sparse"
                manifest = WeightManifest(
                    schema=MANIFEST_SCHEMA,
                    version=version,
                    base_version=base_version,
                    format=format_,
                    step=step,
                    parent=parent,
                    run=self.run,
                    content_sha256=content_sha256(entries),
                    num_changed=changed,
                    files=[file],
                    tensors=list(entries),
                    golden=list(golden),
                )
                write_durably(folder / MANIFEST_NAME, encode_manifest(manifest))
        except BaseException:
            _empty_folder(folder)
            raise
        return manifest


@contextmanager
def _space_for(tensors: Mapping[str, Tensor], version: int, root: Path) -> Iterator[None]:
    """Says of a full disk what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = sum(tensor.words.nbytes for tensor in tensors.values())
        raise StoreError(
            f"no space for version {version} in {root}: it needs {needed} bytes; free some, lower "
            f"store.keep_versions, or set store.weights to a larger disk"
        ) from error


def _empty_folder(folder: Path) -> None:
    """Frees the space of a failed publish and keeps the folder, so that its number stays taken."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name != MANIFEST_NAME):
        path.unlink(missing_ok=True)
