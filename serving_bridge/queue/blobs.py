"""Payloads too big for a row: those of one `put` share a file, of which each row names a part (the claim check: Hohpe,
Woolf, 2003).

A file that no row needs any more is kept as a spare for a while: overwriting bytes that the disk has room for already
takes about half the time of making a file.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import xxhash

from learner_jax.contracts import quoted
from learner_jax.runtime import (
    FILE_MODE,
    FOLDER_MODE,
    PlainFileError,
    WeirError,
    at,
    create_plain,
    is_own_regular,
    make_folder,
    open_plain,
    opened_folder,
    read_at,
    read_plain,
    sync_path,
)

_SPARE = "spare"
_ID = ".id"
#: Of every file that is read, renamed or deleted for a row's sake.
_NAME = re.compile(r"[0-9a-f]{32}")
_HASH = re.compile(r"[0-9a-f]{32}")
MAX_OFFSET = 2**48
_ID_NUMBER = re.compile(rb"\d{1,19}")
#: A process that has run out of something must not take it for the files' fault.
_OWN_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: Kept for the next ones to write; what is beyond is deleted.
_SPARE_BYTES = 2**29


class BlobError(WeirError, RuntimeError):
    """A blob, or the folder's own name, is missing or damaged; the message names it."""


def is_blob_name(name: str) -> bool:
    """Whether a file of that name may hold payloads: no other is ever read, renamed or deleted."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Blob:
    """Where a payload is: so many bytes from `offset` in `file`, with this XXH3-128 in hexadecimal digits."""

    file: str
    offset: int
    num_bytes: int
    hash: str


class Blobs(Protocol):
    """A place of payloads that all processes of the run reach; `BlobFolder` says what each method does."""

    address: str

    def identity(self) -> int: ...
    def write(self, payloads: Sequence[bytes]) -> list[Blob]: ...
    def write_as(self, name: str, payloads: Sequence[bytes]) -> None: ...
    def holds(self, name: str) -> bool: ...
    def reader(self, max_bytes: int = MAX_OFFSET) -> AbstractContextManager[Callable[[Blob], bytes]]: ...
    def release(self, names: Iterable[str]) -> None: ...
    def files(self) -> Iterator[tuple[str, int, float]]: ...
    def spares(self) -> Iterator[tuple[str, int, float]]: ...
    def sweep(self, wanted: Collection[str], *, before_s: float) -> int: ...


class BlobFolder:
    """Files in a folder that all processes of the run see; the folder is made when the first is written.

    Args:
      spare_bytes: size of all files together that are kept for the next ones to write over; 0 deletes each at once, and
        None is half a gibibyte.
    """

    def __init__(self, folder: Path, *, spare_bytes: int | None = None):
        self.folder, self.address = folder, str(folder)
        self._spares = folder / _SPARE
        self._most_spare_bytes = _SPARE_BYTES if spare_bytes is None else spare_bytes
        self._spare_bytes = self._most_spare_bytes  # as far as this process knows
        self._is_durable = False

    def identity(self) -> int:
        """A number that the folder got when it was first asked: who reads another one sees another folder.

        Raises:
          BlobError: the file that holds it was damaged.
        """
        path = self.folder / _ID
        self._make_durable()
        if not os.path.lexists(path):
            partial = path.with_name(f"{_ID}.{uuid.uuid4().hex}")
            number = str(uuid.uuid4().int >> 66).encode()  # as many bits as a database's integer has
            _write(create_plain(partial), [number])
            try:
                os.link(partial, path)
            except FileExistsError:
                pass  # another process was first
            except OSError:  # a file system without hard links
                with suppress(FileExistsError):
                    _write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), [number])
            partial.unlink()
        sync_path(self.folder)  # a number that a power failure takes would make this another folder
        try:
            return int(_ID_NUMBER.fullmatch(read_plain(self.folder, _ID, max_bytes=64))[0])  # type: ignore[index]
        except (PlainFileError, TypeError) as error:
            raise BlobError(f"{path} is damaged, expected a number: restore it, or begin in another folder") from error

    def write(self, payloads: Sequence[bytes]) -> list[Blob]:
        """Stores payloads durably in one file under a name that was never used before; says where each is."""
        name = uuid.uuid4().hex
        self.write_as(name, payloads)
        return placed(name, payloads)

    def write_as(self, name: str, payloads: Sequence[bytes]) -> None:
        """Stores payloads durably in the file of that name, one after the other."""
        path = self.folder / name
        self._make_durable()
        try:
            with at(path):
                _write(_create(path, reuse=self._take_spare(path)), payloads)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        sync_path(self.folder)

    def _make_durable(self) -> None:
        """Makes the folder; whoever made it before may have died before its name was on the disk."""
        if not self._is_durable:
            make_folder(self.folder)
            sync_path(self.folder.parent)
            self._is_durable = True

    def holds(self, name: str) -> bool:
        return (self.folder / name).exists()

    @contextmanager
    def reader(self, max_bytes: int = MAX_OFFSET) -> Iterator[Callable[[Blob], bytes]]:
        """What reads blobs of at most `max_bytes`: raises `BlobError` where a file is missing, or is none of this
        folder's, or does not hold what it held.

        Each file is opened once for as long as the context lasts, which is also when network file systems look for what
        other hosts wrote: a reader is not to be kept.
        """
        with ExitStack() as stack:

            @cache
            def folder() -> int:
                return stack.enter_context(opened_folder(self.folder))

            @cache
            def opened(name: str) -> tuple[int, int]:
                file, size = open_plain(name, folder())
                stack.callback(os.close, file)
                return file, size

            def read(blob: Blob) -> bytes:
                check_place(blob, max_bytes)
                try:
                    file, size = opened(blob.file)
                    data = read_at(file, min(blob.num_bytes, max(0, size - blob.offset)), blob.offset)
                except FileNotFoundError:
                    raise BlobError(
                        f"blob {blob.file} is not in {self.folder}: all hosts must see the same folder (store.blobs)"
                    ) from None
                except (OSError, PlainFileError) as error:
                    if isinstance(error, OSError) and error.errno in _OWN_TROUBLE:
                        raise
                    raise BlobError(f"blob {blob.file} in {self.folder} can't be read: {error}") from error
                return checked(data, blob, self.folder)

            yield read

    def release(self, names: Iterable[str]) -> None:
        """Takes back files that no row needs any more: as spares, or for good where there are enough of them.

        A name that is none of a blob, as a row may say, is left alone, and so is what is no regular file.
        """
        for name in names:
            if not _NAME.fullmatch(name):
                continue
            path = self.folder / name
            with suppress(FileNotFoundError):  # whoever released it before died in between, or was only slow
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode):
                    continue
                num_bytes = found.st_size
                if not self._most_spare_bytes:
                    path.unlink()
                    continue
                if self._spare_bytes + num_bytes > self._most_spare_bytes:  # or fewer, as others take them
                    self._spares.mkdir(mode=FOLDER_MODE, exist_ok=True)
                    self._spare_bytes = sum(size for _, size, _ in self.spares())
                if self._spare_bytes + num_bytes > self._most_spare_bytes:
                    path.unlink()
                else:
                    path.rename(self._spares / name)
                    self._spare_bytes += num_bytes

    def files(self) -> Iterator[tuple[str, int, float]]:
        """(name, bytes, time of writing in wall-clock seconds) of every file that is no spare."""
        return _listed(self.folder)

    def spares(self) -> Iterator[tuple[str, int, float]]:
        """The same of the spare ones."""
        return _listed(self._spares)

    def sweep(self, wanted: Collection[str], *, before_s: float) -> int:
        """Takes back what no row refers to and was written before this time; returns how many.

        A process that dies between file and row leaves such an orphan. Younger ones may get their row yet.
        """
        orphans = [name for name, _, written_s in self.files() if name not in wanted and written_s < before_s]
        self.release(orphans)
        return len(orphans)

    def _take_spare(self, path: Path) -> bool:
        """Renames a spare file, if there is one that no other process takes just now."""
        try:
            with os.scandir(self._spares) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if _NAME.fullmatch(entry.name) and is_own_regular(entry):
                            os.rename(entry.path, path)
                            return True
        except FileNotFoundError:
            make_folder(self.folder)
        return False


def placed(name: str, payloads: Sequence[bytes]) -> list[Blob]:
    """Where payloads are that lie one after the other in the file of that name."""
    blobs, offset = [], 0
    for payload in payloads:
        blobs.append(Blob(name, offset, len(payload), xxhash.xxh3_128_hexdigest(payload)))
        offset += len(payload)
    return blobs


def check_place(blob: Blob, max_bytes: int) -> None:
    """Raises `BlobError` for what no `write` returned."""
    if not _NAME.fullmatch(blob.file):
        raise BlobError(f"{quoted(blob.file, 80)} is no name of a blob, expected 32 hexadecimal digits")
    if not (type(blob.offset) is int and 0 <= blob.offset < MAX_OFFSET and 0 < blob.num_bytes <= max_bytes):
        raise BlobError(
            f"blob {blob.file}: {blob.num_bytes} bytes from {blob.offset}, expected 1 to {max_bytes} "
            f"(store.max_group_bytes) from 0 or above"
        )
    if not isinstance(blob.hash, str) or not _HASH.fullmatch(blob.hash):
        raise BlobError(f"blob {blob.file} has hash {quoted(blob.hash, 80)}, expected 32 hexadecimal digits")


def checked(data: bytes, blob: Blob, where: Path | str) -> bytes:
    """The bytes that were read of a blob. Raises `BlobError` unless they are those that were written."""
    if xxhash.xxh3_128_hexdigest(data) != blob.hash:
        raise BlobError(
            f"blob {blob.file} in {where} is damaged: the {blob.num_bytes} bytes from {blob.offset} are not what was "
            f"written"
        )
    return data


def _create(path: Path, *, reuse: bool) -> int:
    """A descriptor to write to: of the spare file that is there, or of a new one."""
    if not reuse:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    return os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _write(descriptor: int, payloads: Sequence[bytes]) -> None:
    """Writes one after the other, to the disk, and closes the file."""
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(payloads)
        file.flush()
        os.fsync(file.fileno())


def _listed(folder: Path) -> Iterator[tuple[str, int, float]]:
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process ended its groups
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    yield entry.name, found.st_size, found.st_mtime
