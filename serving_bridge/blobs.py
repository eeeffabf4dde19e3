"""Payloads too big for a row, as files named after their content (the claim check: Hohpe, Woolf, 2003)."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

_PARTIAL = ".partial"


class BlobError(RuntimeError):
    """A blob is missing or damaged; the message names it."""


class BlobFolder:
    """Files in a folder that all processes of the run see; the folder is made when the first is written."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, data: bytes) -> str:
        """Stores bytes durably; returns their name. The same bytes again refresh the file's age."""
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sync_folder(self.folder)
        partial = path.parent / f"{uuid.uuid4().hex}{_PARTIAL}"
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        return name

    def holds(self, name: str) -> bool:
        return self._path(name).exists()

    def read(self, name: str) -> bytes:
        """Raises `BlobError` where the file is missing or does not hold what it held."""
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError:
            raise BlobError(f"blob {name} is not in {self.folder}") from None
        if (found := hashlib.sha256(data).hexdigest()) != name:
            raise BlobError(f"blob {name} in {self.folder} is damaged: its {len(data)} bytes hash to {found}")
        return data

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def files(self) -> Iterator[tuple[str, int, float]]:
        """(name, bytes, time of writing in wall-clock seconds) of every file, whole or partial."""
        return ((path.name, found.st_size, found.st_mtime) for path, found in self._files())

    def sweep(self, wanted: Collection[str], *, before_s: float) -> int:
        """Deletes what no row refers to and was written before this time; returns how many.

        A process that dies between file and row leaves such an orphan. Younger ones may get their row yet.
        """
        num_deleted = 0
        for path, found in self._files():
            if path.name not in wanted and found.st_mtime < before_s:
                path.unlink(missing_ok=True)
                num_deleted += 1
        return num_deleted

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("??/*"):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue  # another process ended its group
            yield path, found

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
