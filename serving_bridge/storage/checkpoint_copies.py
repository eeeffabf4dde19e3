"""Checkpoints in object storage: files first, then a manifest under the next number, written only if there is none.

A copy exists once its manifest does. Numbers are read by name from the last one that a list shows on, since lists may
lag; manifests are never deleted, so that no number is missing between two others. One that says "removed" has no files.

    data/<life>-<step>-<random>/...     files of one copy
    manifests/00000007.json             the seventh copy that was committed
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.contracts import CheckpointCopy, quoted
from learner_jax.runtime import crash_point, make_folder
from serving_bridge.storage.objects import ObjectStore, StorageError, check_key
from serving_bridge.storage.pieces import ContentError, download, each

_SCHEMA = 1
_DATA, _MANIFESTS = "data", "manifests"
_NAME = re.compile(rf"{_MANIFESTS}/(\d{{8}})\.json", re.ASCII)
_FOLDER = re.compile(r"(\d+)-(\d+)-[0-9a-f]{16}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_MANIFEST_BYTES = 64 << 20
#: Learners that were replaced may commit so many copies beside those that are kept.
_LATE = 64
_BLOCK = 4 << 20


@dataclass(frozen=True)
class _Manifest:
    """What is under a number: a copy, and its files by name, each with bytes and SHA-256."""

    copy: CheckpointCopy
    run: str
    folder: str
    files: Mapping[str, tuple[int, str]]

    def encode(self) -> bytes:
        record = {"schema": _SCHEMA, "run": self.run, "life": self.copy.life, "step": self.copy.step}
        return json.dumps(record | {"folder": self.folder, "files": self.files}).encode()


class CheckpointObjects:
    """Implements `CheckpointCopies`.

    Args:
      run: name of the run, whose copies alone are read; empty to read those of any.
      keep: copies kept; those of earlier lives go first.
    """

    def __init__(self, objects: ObjectStore, *, run: str, keep: int = 1) -> None:
        self._objects, self._run, self._keep = objects, run, keep
        self.address = objects.url

    def newest(self) -> CheckpointCopy | None:
        return max(self.recent(), default=None)

    def recent(self) -> list[CheckpointCopy]:
        """The copies that there are, the earliest commit first."""
        return [manifest.copy for manifest in self._recent()]

    def keep(self, folder: Path, *, step: int, life: int, copied: Callable[[int], None] = lambda _: None) -> int:
        """As `CheckpointCopies.keep`; nothing is copied again that is there.

        Raises:
          StorageError: storage does not take it; what was uploaded is removed as far as that goes.
        """
        if any((manifest.copy.step, manifest.copy.life) == (step, life) for manifest in self._recent()):
            return 0
        place = f"{_DATA}/{life}-{step}-{secrets.token_hex(8)}"
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files: dict[str, tuple[int, str]] = {}

        def upload(name: str) -> None:
            path = folder / name
            files[name] = path.stat().st_size, _sha256(path)
            self._objects.put_file(f"{place}/{name}", path)
            crash_point("copying")
            copied(files[name][0])

        try:
            each(upload, names)
            self._commit(_Manifest(CheckpointCopy(life, step, 0), self._run, place, files))
        except BaseException:
            with suppress(StorageError):
                self._objects.delete([f"{place}/{name}" for name in files])
            raise
        self._tidy(life)
        return sum(size for size, _ in files.values())

    def fetch(self, copy: CheckpointCopy, folder: Path) -> None:
        """As `CheckpointCopies.fetch`.

        Raises:
          ContentError: a file is missing, or is not what was copied; the message says how to go on without it.
          StorageError: storage does not answer.
          OSError: a file can't be written here.
        """
        manifest = self._manifest(copy.number)
        if manifest is None or manifest.copy != copy:
            raise ContentError(f"{self._place(copy.number)} is gone: another learner works on this run")

        def fetch(name: str) -> None:
            size, sha256 = manifest.files[name]
            path = folder / name
            key = f"{manifest.folder}/{name}"
            try:
                download(self._objects, key, size, path)
            except FileNotFoundError:
                raise ContentError(f"{key} is missing") from None
            if (found := _sha256(path)) != sha256:
                raise ContentError(f"{key} has sha256 {found}, expected {sha256}")

        for parent in sorted({(folder / name).parent for name in manifest.files} | {folder}):
            make_folder(parent)
        try:
            each(fetch, sorted(manifest.files))
        except ContentError as error:
            raise ContentError(
                f"the copy of checkpoint {copy.step} in {self.address} is damaged: {error}; to go on from the one "
                f"before it, write the word removed to {self._place(copy.number)}"
            ) from error

    def _place(self, number: int) -> str:
        return f"{self.address}/{_key(number)}"

    def _last(self) -> int:
        """The number of the last commit, 0 if there is none: a list may lack the newest ones."""
        listed = (_NAME.fullmatch(key) for key in self._objects.list(f"{_MANIFESTS}/"))
        last = max((int(match[1]) for match in listed if match), default=0)
        while self._objects.size(_key(last + 1)) is not None:
            last += 1
        return last

    def _recent(self) -> list[_Manifest]:
        """The copies that there are, as far as the last commits hold them."""
        last = self._last()
        numbers = range(max(1, last - self._keep - _LATE + 1), last + 1)
        found: dict[int, _Manifest | None] = {}

        def read(number: int) -> None:
            found[number] = self._manifest(number)

        each(read, numbers)
        return [manifest for number in numbers if (manifest := found[number]) is not None]

    def _manifest(self, number: int) -> _Manifest | None:
        """What is under a number; None for nothing, or what was removed."""
        try:
            raw = self._objects.get(_key(number), max_bytes=_MAX_MANIFEST_BYTES)
            return None if raw.strip() == b"removed" else _decoded(raw, number, self._run)
        except FileNotFoundError:
            return None
        except ContentError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ContentError(
                f"{self._place(number)} is no manifest of a checkpoint: {quoted(repr(error), 200)}; if it may be left "
                f"out, write the word removed to it"
            ) from None

    def _commit(self, manifest: _Manifest) -> None:
        number, content = self._last() + 1, manifest.encode()
        crash_point("copied")
        while not self._objects.put_new(_key(number), content):
            number += 1  # another learner was faster

    def _tidy(self, life: int) -> None:
        """Removes copies beyond those that are kept, and what lives before this one never committed."""
        there = sorted(self._recent(), key=lambda manifest: manifest.copy, reverse=True)
        for manifest in there[self._keep :]:
            self._objects.put(_key(manifest.copy.number), b"removed")
            self._objects.delete([f"{manifest.folder}/{name}" for name in manifest.files])
        kept = {manifest.folder for manifest in there[: self._keep]}
        self._objects.delete([key for key, folder, of in self._data() if of < life and folder not in kept])

    def _data(self) -> Iterator[tuple[str, str, int]]:
        """(key, folder, life) of every file that is there."""
        for key in self._objects.list(f"{_DATA}/"):
            folder = "/".join(key.split("/")[:2])
            if match := _FOLDER.fullmatch(folder.removeprefix(f"{_DATA}/")):
                yield key, folder, int(match[1])


def _key(number: int) -> str:
    return f"{_MANIFESTS}/{number:08d}.json"


def _decoded(raw: bytes, number: int, run: str) -> _Manifest:
    record: Any = json.loads(raw)
    if record["schema"] != _SCHEMA:
        raise ValueError(f"schema {record['schema']!r}, expected {_SCHEMA}")
    if run and record["run"] != run:
        raise ContentError(
            f"the checkpoints there are of the run {quoted(str(record['run']), 80)}, expected {run}: give "
            f"store.checkpoints another place"
        )
    life, step, folder = record["life"], record["step"], record["folder"]
    match = _FOLDER.fullmatch(folder.removeprefix(f"{_DATA}/"))
    if match is None or (int(match[1]), int(match[2])) != (life, step):
        raise ValueError(f"the folder {folder!r}")
    files = {}
    for name, (size, sha256) in record["files"].items():
        check_key(f"{folder}/{name}")
        if type(size) is not int or size < 0 or not _SHA256.fullmatch(sha256):
            raise ValueError(f"the file {name!r}")
        files[name] = size, sha256
    return _Manifest(CheckpointCopy(life, step, number), str(record["run"]), folder, files)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
