"""What must hold of files, at every sync, rename and deletion: payloads, weight versions, checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

from learner_jax.contracts import ContractError, decode_manifest
from tools.testing.simulate.checkpoints import files_of
from tools.testing.simulate.disk import Disk, Effect
from tools.testing.simulate.violations import Violations

_NAME_LENGTH = 32
_MANIFESTS = ("manifest.json", "anchor.json")


class FileChecks:
    """Looks at each effect on the run's files.

    Args:
      blobs, weights, checkpoints: folders.
      in_use: versions that replicas serve now.

    Attributes:
      disk: set once it is there.
      identities: of the parameters of each version that was claimed, by version.
      proven: steps whose checkpoints were proven.
    """

    disk: Disk

    def __init__(
        self,
        violations: Violations,
        *,
        blobs: Path,
        weights: Path,
        checkpoints: Path,
        in_use: Callable[[], Collection[int]],
    ) -> None:
        self._violations = violations
        self._blobs, self._weights, self._checkpoints, self._in_use = blobs, weights, checkpoints, in_use
        self._needed: set[str] = set()
        self._needed_on_disk: set[str] = set()
        self._dropped: set[str] = set()
        self._left: set[str] = set()
        self._num_troubles = 0
        self._folders: set[str] = set()
        #: version that was deleted -> those that existed then
        self._gone: dict[int, set[int]] = {}
        self.identities: dict[int, int] = {}
        self.proven: set[int] = set()

    # Payloads.

    def needed_by_rows(self, files: set[str], *, is_synced: bool, dropped: Collection[str] = ()) -> None:
        """After a transaction: the files that rows need now; a power failure may bring the rows before it back.

        Args:
          dropped: files that are freed with the next acknowledgement.
        """
        self._dropped |= set(dropped)
        for file in files - self._needed:
            self._violations.require((self._blobs / file).exists(), "payload missing", f"no file {file}")
        self._needed = files
        self._needed_on_disk = files if is_synced else self._needed_on_disk | files

    def put(self, group: str, file: str) -> None:
        """A row refers to this file from now on."""
        path = self._blobs / file
        self._violations.require(self.disk.survives(path), "payload not on the disk", f"{group} is put before {file}")

    def read(self, file: str) -> bytes:
        """What is in a file of payloads."""
        return (self._blobs / file).read_bytes()

    def freed(self, num_troubles: int) -> None:
        """Now and then: a file that no row needs is there only since something went wrong in between.

        Args:
          num_troubles: processes that ended and transactions that failed, so far.
        """
        if not self._blobs.is_dir():
            return
        left = {name for name in os.listdir(self._blobs) if len(name) == _NAME_LENGTH} - self._needed
        fresh, excused = left - self._left - self._dropped, num_troubles != self._num_troubles
        self._left, self._num_troubles = left, num_troubles
        self._violations.require(excused or not fresh, "payload kept", f"{sorted(fresh)} are needed by nobody")

    # Effects.

    def effect(self, effect: Effect) -> None:
        """Before and after each."""
        path = effect.path
        if effect.kind == "rename" and effect.source is not None and effect.source.parent == self._blobs:
            self._taken(effect.source.name, effect)
        elif effect.kind == "unlink" and path.parent == self._blobs:
            self._taken(path.name, effect)
        elif effect.kind == "rename" and path.parent == self._checkpoints and path.name.isdecimal():
            self.proven.discard(int(path.name))  # of a life that was replaced, which was put aside
        elif effect.kind == "unlink" and path.name == _MANIFESTS[0] and not effect.done and path.exists():
            self._deleted(path.parent)  # once: whoever is killed amid it leaves the rest for the next to remove
        elif effect.kind == "rename" and path.name in _MANIFESTS and effect.source is not None and not effect.done:
            self._appears(path, effect.source)

    def _taken(self, file: str, effect: Effect) -> None:
        """A payload's file gets another name, or none."""
        if not effect.done:
            needed = file in self._needed or file in self._needed_on_disk
            self._violations.require(not needed, "payload freed early", f"{file} is needed by a row")

    def _appears(self, path: Path, source: Path) -> None:
        """A version comes to exist: what its manifest lists must be there, and on the disk."""
        require = self._violations.require
        require(self.disk.holds_content(source), "manifest not on the disk", f"{path} gets its name before")
        manifest = decode_manifest(source.read_bytes())
        for file in manifest.files:
            part = path.parent / file.name
            there = part.exists() and part.stat().st_size == file.num_bytes
            require(there, "manifest before files", f"{path} lists {file.name}")
            on_disk = there and self.disk.holds_content(part)
            require(on_disk, "manifest before files", f"{part} is not on the disk")

    def _deleted(self, folder: Path) -> None:
        version = _version(folder)
        if version is not None and folder.parent == self._weights:
            newest = max(self.versions(), default=0)
            in_use = version == newest or version in self._in_use()
            self._violations.require(not in_use, "version in use deleted", f"version {version}, the newest is {newest}")
            self._gone[version] = set(self.versions())

    def look(self) -> None:
        """Now and then: what the newest version builds on is there."""
        names = set(os.listdir(self._weights)) if self._weights.is_dir() else set()
        if names == self._folders:
            return
        self._folders = names
        existing = self.versions()
        version = existing[-1] if existing else None
        while version is not None and (base := self._base(version)) is not None:
            # A learner that was replaced may build on what was deleted before; the next version mends that.
            deleted = base not in existing and version in self._gone.get(base, ())
            what = f"version {base}, which version {version} builds on"
            self._violations.require(not deleted, "version in use deleted", what)
            version = base

    def _base(self, version: int) -> int | None:
        """The version that another one is an update of; None where it is whole, or damaged."""
        folder = self._weights / f"v{version:08d}"
        with contextlib.suppress(OSError, ContractError):
            return decode_manifest((folder / _MANIFESTS[(folder / _MANIFESTS[1]).exists()]).read_bytes()).base_version
        return None

    # Versions.

    def versions(self) -> list[int]:
        """Those that exist."""
        if not self._weights.is_dir():
            return []
        found = [path for path in self._weights.iterdir() if (path / _MANIFESTS[0]).exists()]
        return sorted(version for path in found if (version := _version(path)) is not None)

    def claimed(self, version: int, identity: int) -> None:
        """Parameters have got this version."""
        require = self._violations.require
        require(version not in self.identities, "version name reused", f"version {version} was given before")
        newest = max(self.identities, default=0)
        require(version > newest, "version name reused", f"version {version} is given after version {newest}")
        folder = self._weights / f"v{version:08d}"
        require(self.disk.survives(folder), "version name not on the disk", f"{folder} may be given once more")
        self.identities[version] = identity

    def published(self, version: int) -> None:
        """The learner believes that it is stored."""
        folder = self._weights / f"v{version:08d}"
        if not (folder / _MANIFESTS[0]).exists():  # a newer one came, and it was collected
            return
        survives = all(self.disk.survives(folder / name) for name in os.listdir(folder) if not name.startswith("."))
        self._violations.require(survives, "version not on the disk", f"version {version} is told of as published")

    # Checkpoints.

    def trained_on_disk(self) -> set[str]:
        """Groups that the newest checkpoint holds which a power failure now would leave."""
        for step in sorted(self._steps(), reverse=True):
            folder = self._checkpoints / str(step)
            if all(self.disk.survives(path) for path in files_of(folder)):
                _, history = json.loads(files_of(folder)[1].read_text())
                return {name for _, ids in history for name in ids}
        return set()

    def put_aside_torn(self) -> None:
        """What a person does after a power failure, as the error says: moves checkpoints away that are not whole."""
        for step in self._steps():
            folder = self._checkpoints / str(step)
            try:
                whole = all(json.loads(path.read_text()) for path in files_of(folder))
            except (OSError, ValueError):
                whole = False
            if not whole:
                self._violations.require(step not in self.proven, "proven checkpoint lost", f"step {step} is torn")
                folder.rename(folder.with_name(f"{step}.damaged.{len(os.listdir(self._checkpoints))}"))

    def _steps(self) -> list[int]:
        return [int(name) for name in os.listdir(self._checkpoints) if name.isdecimal()]


def _version(folder: Path) -> int | None:
    name = folder.name
    return int(name[1:]) if name.startswith("v") and name[1:].isdecimal() else None
