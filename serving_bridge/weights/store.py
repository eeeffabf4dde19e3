"""A folder of immutable weight versions: which there are, what to load for one, and which may go.

Layout: `root/v00000007/{weights.safetensors | update.safetensors, manifest.json}`. A folder without a manifest is a
version that never came to exist; its number stays taken. `anchor.safetensors` and `anchor.json` beside them hold the
same version once more, whole, where someone asked for it in `root/wanted/`. Free of torch and JAX.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Collection
from pathlib import Path

from learner_jax.contracts import MAX_MANIFEST_BYTES, ContractError, WeightManifest, decode_manifest, quoted
from learner_jax.runtime import (
    FOLDER_MODE,
    PlainFileError,
    is_folder,
    is_regular,
    read_plain,
    sync_path,
    write_durably,
)
from serving_bridge.weights.checks import check_content
from serving_bridge.weights.files import StoreError, WeightIntegrityError, verify_file
from serving_bridge.weights.folders import folder_name, numbers, own_folder

MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.safetensors"
UPDATE_NAME = "update.safetensors"
ANCHOR_MANIFEST_NAME = "anchor.json"
ANCHOR_NAME = "anchor.safetensors"

_MAX_REASON_BYTES = 10_000
_WANTED = "wanted"


class WeightStore:
    """Policy versions of one run under one folder.

    Many processes may read while one publishes (`writer.VersionWriter`). Version numbers start at 1, only go up and are
    never reused: a number is claimed by making its folder, and the highest folder is never deleted.
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

    def claimed(self) -> list[int]:
        """Numbers that are taken, also by versions that never came to exist, in ascending order."""
        return numbers(self.root, lambda mode: True)

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

    def verify(self, manifest: WeightManifest) -> None:
        """Hashes every file of a version. Raises `WeightIntegrityError` naming file, expected and got."""
        check_content(manifest)
        for file in manifest.files:
            verify_file(self.folder(manifest.version) / file.name, file)

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
        for version in self.claimed():
            if version < oldest and version not in kept:
                folder = self.folder(version)
                if not is_folder(folder):
                    folder.unlink(missing_ok=True)  # a link or file that took the number; what it names stays
                    continue
                for name in (MANIFEST_NAME, ANCHOR_MANIFEST_NAME):
                    (folder / name).unlink(missing_ok=True)
                sync_path(folder)
                shutil.rmtree(folder)
        return deleted

    def _base_of(self, version: int) -> int | None:
        try:
            return self.best_manifest(version).base_version
        except (StoreError, ContractError):
            return None  # damaged: nothing can be loaded by it

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
