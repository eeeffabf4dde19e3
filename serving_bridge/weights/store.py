"""Immutable weight versions: which there are, what to load for one, and which may go.

Layout: `root/v00000007/{weights.safetensors | update.safetensors, manifest.json}`, in a folder or in object storage.
What has no manifest is a version that never came to exist; its number stays taken. `anchor.safetensors` and
`anchor.json` beside them hold the same version once more, whole, where someone asked for it in `root/wanted/`. Free of
torch and JAX.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from learner_jax.contracts import MAX_MANIFEST_BYTES, ContractError, WeightFile, WeightManifest, decode_manifest, quoted
from serving_bridge.storage import is_url
from serving_bridge.weights.checks import check_content
from serving_bridge.weights.files import StoreError, Tensor, WeightIntegrityError
from serving_bridge.weights.folder_shelf import FolderShelf
from serving_bridge.weights.object_shelf import ObjectShelf
from serving_bridge.weights.shelf import ANCHOR_MANIFEST_NAME, MANIFEST_NAME, Shelf, ShelfOptions


class WeightStore:
    """Policy versions of one run below one folder or URL.

    Many processes may read while one publishes (`writer.VersionWriter`). Version numbers start at 1, only go up and are
    never reused: a number is claimed for good before anything is written, and the highest is never deleted.

    Args:
      root: a path, or the URL of a place in object storage.
      options: what a store in object storage needs beside it.

    Raises:
      StorageSetupError: the URL names nothing that can be opened here.
    """

    def __init__(self, root: str | Path, run: str, options: ShelfOptions | None = None) -> None:
        self.run = run
        self.options = options or ShelfOptions()
        self.shelf: Shelf = ObjectShelf(str(root), self.options) if is_url(root) else FolderShelf(Path(root))

    @property
    def address(self) -> str:
        """Absolute path or URL."""
        return self.shelf.address

    @property
    def root(self) -> Path:
        """The folder of a store in a folder."""
        if not isinstance(self.shelf, FolderShelf):
            raise StoreError(f"weight store {self.address} is no folder")
        return self.shelf.root

    def folder(self, version: int) -> Path:
        """The folder of a version of a store in a folder."""
        if not isinstance(self.shelf, FolderShelf):
            raise StoreError(f"weight store {self.address} is no folder")
        return self.shelf.folder(version)

    @property
    def poll_s(self) -> float:
        """Seconds between two looks for a new version that cost little."""
        return self.shelf.poll_s

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What of its own environment a process hands to one that shall open this store; secrets are among it."""
        return self.shelf.variables(environment)

    def versions(self, *, recent: bool = False) -> list[int]:
        """Versions that exist (have a manifest), in ascending order.

        Args:
          recent: what the last look saw will do; then no network is waited for.
        """
        return self.shelf.stored(recent=recent)

    def claimed(self) -> list[int]:
        """Numbers that are taken, also by versions that never came to exist, in ascending order."""
        return self.shelf.claimed()

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
        return self._own_manifest(version)[0]

    def best_manifest(self, version: int) -> WeightManifest:
        """The manifest to load a version by: that of its anchor, if one was added, else its own."""
        return self.best_document(version)[0]

    def best_document(self, version: int) -> tuple[WeightManifest, bytes]:
        """As `best_manifest`, with the bytes that it was decoded from."""
        try:
            return self._read_manifest(version, ANCHOR_MANIFEST_NAME)
        except FileNotFoundError:
            return self._own_manifest(version)

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
            self.shelf.verify(manifest.version, file)

    def read(self, version: int, file: WeightFile) -> dict[str, Tensor]:
        """The tensors of one file of a version. Raises `WeightIntegrityError` unless it is what the manifest says."""
        return self.shelf.read_tensors(version, file)

    def has_anchor(self, version: int, *, recent: bool = False) -> bool:
        """Whether a version was stored once more, whole; `recent` as in `versions`."""
        return self.shelf.holds(version, ANCHOR_MANIFEST_NAME, recent=recent)

    def want_anchor(self, version: int, reason: str) -> None:
        """Asks whoever publishes to store a version once more, whole: what is there can't be loaded."""
        self.shelf.want(version, quoted(reason).encode())

    def wanted_anchors(self) -> list[int]:
        """Versions that `want_anchor` asked for and that nobody has taken yet, in ascending order."""
        return self.shelf.wanted()

    def take_wanted(self, version: int) -> str | None:
        """Takes a request for an anchor back and returns its reason; None if there is none."""
        reason = self.shelf.take_wanted(version)
        return None if reason is None else quoted(reason.decode(errors="replace"))

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
                self.shelf.remove(version)
        return deleted

    def _base_of(self, version: int) -> int | None:
        try:
            return self.best_manifest(version).base_version
        except (StoreError, ContractError):
            return None  # damaged: nothing can be loaded by it

    def _own_manifest(self, version: int) -> tuple[WeightManifest, bytes]:
        try:
            return self._read_manifest(version, MANIFEST_NAME)
        except FileNotFoundError:
            raise StoreError(
                f"weight store {self.address} holds no version {version}; it holds {self.versions()}"
            ) from None

    def _read_manifest(self, version: int, name: str) -> tuple[WeightManifest, bytes]:
        path = self.shelf.place(version, name)
        payload = self.shelf.read(version, name, max_bytes=MAX_MANIFEST_BYTES)
        manifest = decode_manifest(payload)
        if manifest.version != version:
            raise WeightIntegrityError(f"{path} says version {manifest.version}, expected {version}")
        if manifest.base_version is not None and manifest.base_version >= version:
            raise WeightIntegrityError(f"{path} builds on version {manifest.base_version}, expected an older one")
        return manifest, payload
