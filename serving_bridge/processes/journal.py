"""What a process must not forget when it is killed: a file of lines, and the lines that killed processes left.

A line is in the kernel when `append` returns, so it survives the process, also after `kill -9`; it does not survive
the machine. A lock on a file beside it is held while the process lives. A process that gets that lock knows that the
owner is gone, and takes over what it left.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from learner_jax.runtime import FILE_MODE, make_folder, write_whole

_SUFFIX = ".journal"
_MAX_BYTES = 2**30


class Journal:
    """This process's journal; a line has no line feed in it.

    Args:
      folder: on a local disk; the journals of all processes of one kind on this host.
      name: of this process; never used twice.

    Attributes:
      num_bytes: its size.

    Raises:
      OSError: the file can't be made or locked.
    """

    def __init__(self, folder: Path, name: str) -> None:
        make_folder(folder)
        self._path = folder / f"{name}{_SUFFIX}"
        self._lock = _locked(self._path)
        if self._lock is None:
            raise OSError(f"{self._path} is another process's: expected a name that is used once")
        self._fd = self._open()
        self.num_bytes = 0
        self._is_torn = False

    def append(self, line: bytes) -> None:
        """Adds a line. Raises `OSError` when the disk is full; then it was not added."""
        content = (b"\n" if self._is_torn else b"") + line + b"\n"
        self._is_torn = True  # until all of it is written: what follows a piece of a line must begin a new one
        if os.write(self._fd, content) != len(content):
            raise OSError(f"{self._path}: the disk is full")
        self._is_torn = False
        self.num_bytes += len(content)

    def replace(self, lines: Iterable[bytes]) -> None:
        """Writes it anew with what still matters."""
        content = b"".join(line + b"\n" for line in lines)
        write_whole(self._path, content)
        os.close(self._fd)
        self._fd = self._open()
        self.num_bytes = len(content)

    def clear(self) -> None:
        """Empties it at once: nothing in it is needed any more."""
        os.ftruncate(self._fd, 0)
        self.num_bytes, self._is_torn = 0, False

    def close(self, *, remove: bool) -> None:
        """Ends it; `remove` where nothing in it is needed any more."""
        if self._lock is None or self._lock.closed:
            return
        os.close(self._fd)
        self._fd = -1
        if remove:
            _remove(self._path)
        self._lock.close()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)


class LeftJournal:
    """The journal of a process that is gone; held until it is removed or closed.

    Attributes:
      name: of the process.
      lines: all of them; the last one may be cut off.
    """

    def __init__(self, path: Path, lock: TextIO) -> None:
        self._path, self._lock = path, lock
        self.name = path.name.removesuffix(_SUFFIX)
        with path.open("rb") as file:
            self.lines: Sequence[bytes] = file.read(_MAX_BYTES).split(b"\n")

    def remove(self) -> None:
        """Nothing in it is needed any more."""
        _remove(self._path)
        self.close()

    def close(self) -> None:
        """Leaves it to another process."""
        self._lock.close()


def left_journals(folder: Path) -> list[LeftJournal]:
    """The journals in a folder whose processes are gone."""
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        lock = _locked(path)
        if lock is None:
            continue
        if path.exists():
            found.append(LeftJournal(path, lock))
        else:  # somebody else settled it meanwhile
            _remove(path)
            lock.close()
    return found


def _locked(path: Path) -> TextIO | None:
    """The lock of a journal; None while its process lives."""
    file = path.with_suffix(".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".lock").unlink(missing_ok=True)
