"""Files of object storage on this host, named by their content: fetched once for all processes, and not for ever.

A file is in the cache under its SHA-256, which says what it must be and not what it is: who reads it hashes it. Files
that were not used for longest go first. A process that has one open goes on reading it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from learner_jax.runtime import FILE_MODE, make_folder
from serving_bridge.storage.objects import ObjectStore
from serving_bridge.storage.pieces import download

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILES, _LOCKS = "files", "locks"
_SUFFIX = ".safetensors"
_POLL_S = 0.05
#: What is still unfinished after so long without a write was left by a process that died.
_ABANDONED_S = 3600.0


class FileCache:
    """Files below a folder that all processes of this host may share.

    Args:
      folder: made when it is first used, for its owner alone.
      max_bytes: of all files. One that is larger by itself is kept until the next one comes.
      wait_s: for another process that fetches the same file; after that it is fetched here as well.
    """

    def __init__(self, folder: Path, *, max_bytes: int, wait_s: float = 600.0) -> None:
        self.folder = folder
        self._max_bytes, self._wait_s = max_bytes, wait_s

    def fetch(self, objects: ObjectStore, key: str, *, sha256: str, num_bytes: int) -> Path:
        """The path of a file of this size, from the cache or from storage; its hash is not looked at.

        Raises:
          FileNotFoundError: storage has no such object.
          ContentError: the object has another size.
          StorageError: storage does not answer.
          OSError: the file can't be written here.
        """
        path = self._path(sha256)
        if self._use(path, num_bytes):
            return path
        with self._alone(sha256) as is_alone:
            if self._use(path, num_bytes):
                return path
            if is_alone:
                self._remove_partial(sha256)
            self._make_room(num_bytes)
            partial = self._partial(sha256)
            try:
                download(objects, key, num_bytes, partial)
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        return path

    @contextmanager
    def writing(self, num_bytes: int) -> Iterator[Path]:
        """A path for a file that this process makes; what is there at the end is removed unless it was `kept`."""
        make_folder(self.folder / _FILES)
        self._make_room(num_bytes)
        partial = self._partial("0" * 64)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def keep(self, partial: Path, sha256: str) -> None:
        """Gives a file of `writing` its name, so that nobody on this host has to fetch it."""
        os.replace(partial, self._path(sha256))

    def drop(self, sha256: str) -> None:
        """Removes a file whose content is not what its name says."""
        self._path(sha256).unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256[:80]!a} is no SHA-256 in hexadecimal digits")
        return self.folder / _FILES / f"{sha256}{_SUFFIX}"

    def _partial(self, sha256: str) -> Path:
        return self.folder / _FILES / f".{sha256}.{secrets.token_hex(8)}"

    def _use(self, path: Path, num_bytes: int) -> bool:
        """Whether a file of that size is there; notes that it was used."""
        try:
            if path.stat().st_size != num_bytes:
                path.unlink(missing_ok=True)
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _remove_partial(self, sha256: str) -> None:
        """Removes what a process left that died while it fetched this file; called with the lock."""
        for path in (self.folder / _FILES).glob(f".{sha256}.*"):
            path.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        """Removes the files that were not used for longest, until so many more bytes fit."""
        found = []
        with os.scandir(self.folder / _FILES) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
        used = sum(size for _, size, _ in found)
        for written_s, size, path in sorted(found):
            is_partial = path.name.startswith(".")
            is_abandoned = is_partial and written_s < time.time() - _ABANDONED_S
            if is_abandoned or (not is_partial and used + num_bytes > self._max_bytes):
                path.unlink(missing_ok=True)
                used -= size

    @contextmanager
    def _alone(self, sha256: str) -> Iterator[bool]:
        """Holds the lock of a file's name; says whether it does, as another process may hold it for too long."""
        make_folder(self.folder / _FILES)
        make_folder(self.folder / _LOCKS)
        path = self.folder / _LOCKS / sha256[:2]
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            deadline = time.monotonic() + self._wait_s
            while not (held := _locked(descriptor)) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            yield held
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
