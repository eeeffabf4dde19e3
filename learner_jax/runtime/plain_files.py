"""Files that another process wrote: opened by plain name below a folder, never through a link, never more than a bound.

A name from a record chooses among the files of one folder and nothing else: no path, no link, no device, no pipe, no
folder. Folders that Weir makes are for their owner only.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from learner_jax.runtime.errors import WeirError

#: Of every file that a record may name.
PLAIN_NAME = re.compile(r"\.?[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", re.ASCII)
FOLDER_MODE = 0o700
FILE_MODE = 0o600
#: Of files that are for whom the umask says.
SHARED_MODE = 0o666

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PIECE = 1 << 30


class PlainFileError(WeirError, ValueError):
    """A name is no plain name, or what it names is no regular file of an expected size."""


def check_name(name: str) -> None:
    """Raises `PlainFileError` unless a name is one of a file and nothing more."""
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        shown = name if isinstance(name, str) else type(name).__name__
        raise PlainFileError(
            f"{shown[:80]!a} is no plain file name: expected up to 200 letters, digits, dots, underscores and hyphens"
        )


@contextmanager
def opened_folder(folder: Path, name: str | None = None) -> Iterator[int]:
    """A descriptor of a folder, or of the one called `name` in it, which must then be no link.

    Raises:
      FileNotFoundError: it is missing.
      PlainFileError: it is no folder.
    """
    descriptor = os.open(folder, _FOLDER)
    try:
        if name is None:
            yield descriptor
            return
        check_name(name)
        try:
            inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise PlainFileError(f"{folder / name} is no folder: {error.strerror}") from error
        try:
            yield inner
        finally:
            os.close(inner)
    finally:
        os.close(descriptor)


def open_plain(name: str, folder: int) -> tuple[int, int]:
    """(descriptor, size in bytes) of a regular file in the open folder, for reading; the caller closes it.

    Raises:
      FileNotFoundError: it is missing.
      PlainFileError: the name is no plain one, or names a link, folder, pipe or device.
      OSError: it can't be opened.
    """
    check_name(name)
    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except OSError as error:
        if stat.S_ISREG(_mode(name, folder)) or isinstance(error, FileNotFoundError):
            raise
        raise PlainFileError(f"{name} is no regular file: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise PlainFileError(f"{name} is no regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, found.st_size


def read_plain(folder: Path, name: str, *, max_bytes: int, inside: str | None = None) -> bytes:
    """The content of a regular file of at most `max_bytes`, in `folder` or in the folder called `inside` in it.

    Raises:
      FileNotFoundError: it is missing.
      PlainFileError: no plain name, no regular file, or a larger one.
      OSError: it can't be read.
    """
    with opened_folder(folder, inside) as descriptor:
        file, size = open_plain(name, descriptor)
        try:
            if size > max_bytes:
                raise PlainFileError(f"{name} has {size} bytes, expected at most {max_bytes}")
            return read_at(file, size, 0)
        finally:
            os.close(file)


def read_at(file: int, num_bytes: int, offset: int) -> bytes:
    """So many bytes from `offset`, fewer where the file ends before."""
    pieces = []
    while num_bytes > 0 and (piece := os.pread(file, min(num_bytes, _PIECE), offset)):
        pieces.append(piece)
        num_bytes, offset = num_bytes - len(piece), offset + len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def create_plain(path: Path, mode: int = FILE_MODE) -> int:
    """A descriptor of a new, empty file in place of whatever had the name; for its owner alone by default.

    The caller closes it. What had the name is removed and not written to: a link's target stays as it is.
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def is_regular(path: Path) -> bool:
    """Whether a path names a regular file, and no link to one."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a path names a folder, and no link to one."""
    return stat.S_ISDIR(_mode(path))


def is_own_regular(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file with one name only, so that writing to it changes nothing elsewhere."""
    found = entry.stat(follow_symlinks=False)
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it that are missing, for their owner alone; one that is there stays as it is."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def _mode(path: str | Path, folder: int | None = None) -> int:
    try:
        return os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode
    except OSError:
        return 0
