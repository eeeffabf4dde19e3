"""What a gateway process must not forget when it is killed: a file with a line for each answer that began or ended.

A line is in the kernel when `append` returns, so it survives the process, also after `kill -9`; it does not survive
the machine, unless the exchange with the database, every second, was faster. A lock on a file beside it is held while
the process lives; whoever gets that lock knows that the process is gone, and settles what it left.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import msgspec

from learner_jax.runtime import FILE_MODE, make_folder, write_whole

_SUFFIX = ".journal"
_MAX_BYTES = 2**30


class Began(msgspec.Struct, frozen=True, tag="began"):
    """An answer that was admitted, with what was reserved for it.

    Attributes:
      completion_tokens: n times max_tokens.
      nanos: what the reservation costs, in billionths of the currency's unit.
      began_s: wall clock, seconds since the epoch.
    """

    response_id: str
    tenant: str
    key_id: str
    model: str
    month: str
    prompt_tokens: int
    completion_tokens: int
    nanos: int
    began_s: float


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """What an answer used, and how that is known."""

    response_id: str
    prompt_tokens: int
    completion_tokens: int
    nanos: int
    settled: str


class Written(msgspec.Struct, frozen=True, tag="written"):
    """Answers that are billed in the database, or that were never sent to a model and are not billed."""

    response_ids: tuple[str, ...]


_Line = Began | Ended | Written
_decoder = msgspec.json.Decoder(_Line)
_encoder = msgspec.json.Encoder()


class Journal:
    """This process's journal.

    Args:
      folder: on a local disk; the journals of all gateways of this host.
      name: of this gateway process; never used twice.

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

    def append(self, line: _Line) -> None:
        """Adds a line. Raises `OSError` when the disk is full: the answer must then not begin."""
        content = (b"\n" if self._is_torn else b"") + _encoder.encode(line) + b"\n"
        self._is_torn = True  # until all of it is written: what follows a piece of a line must begin a new one
        if os.write(self._fd, content) != len(content):
            raise OSError(f"{self._path}: the disk is full")
        self._is_torn = False
        self.num_bytes += len(content)

    def replace(self, lines: Iterable[_Line]) -> None:
        """Writes it anew with what still matters."""
        content = b"".join(_encoder.encode(line) + b"\n" for line in lines)
        write_whole(self._path, content)
        os.close(self._fd)
        self._fd = self._open()
        self.num_bytes = len(content)

    def close(self, *, remove: bool) -> None:
        """Ends it; `remove` where everything in it is in the database."""
        if self._lock is None or self._lock.closed:
            return
        os.close(self._fd)
        self._fd = -1
        if remove:
            _remove(self._path)
        self._lock.close()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)


class Left:
    """The journal of a process that is gone; held until it is removed or closed.

    Attributes:
      gateway: whose it was.
      open: answers that had begun and not ended.
      ended: answers that ended and were perhaps not written, with how they began.
    """

    def __init__(self, path: Path, lock: TextIO) -> None:
        self._path, self._lock = path, lock
        self.gateway = path.name.removesuffix(_SUFFIX)
        self.open: dict[str, Began] = {}
        self.ended: dict[str, tuple[Began, Ended]] = {}
        for line in _lines(path):
            match line:
                case Began():
                    self.open[line.response_id] = line
                case Ended():
                    began = self.open.pop(line.response_id, None)
                    if began is not None:
                        self.ended[line.response_id] = (began, line)
                case Written():
                    for response_id in line.response_ids:
                        self.open.pop(response_id, None)
                        self.ended.pop(response_id, None)

    def remove(self) -> None:
        """Everything in it is in the database."""
        _remove(self._path)
        self.close()

    def close(self) -> None:
        self._lock.close()


def left_behind(folder: Path) -> Sequence[Left]:
    """The journals in a folder whose processes are gone."""
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        lock = _locked(path)
        if lock is None:
            continue
        if path.exists():
            found.append(Left(path, lock))
        else:  # somebody else settled it meanwhile
            _remove(path)
            lock.close()
    return found


def _lines(path: Path) -> Iterator[_Line]:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES)
    for line in content.split(b"\n"):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):  # the last one may be cut off
            yield _decoder.decode(line)


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
