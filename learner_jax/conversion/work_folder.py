"""Work that is taken up where it stopped: a hidden folder beside the result, a journal of finished pieces, one lock.

The result appears under its name by renaming, when it is whole. A piece is in the journal only once its bytes are on
the disk; what a killed process wrote after its last entry is written again. Work for other inputs or with other
settings has another fingerprint, and begins afresh.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.conversion.direct_io import File
from learner_jax.runtime import SHARED_MODE, WeirError, at, rename_durably, sync_tree, write_durably


class WorkError(WeirError, ValueError):
    """The result is there already, or somebody else is making it."""


@dataclass(frozen=True)
class Work:
    """One piece of work while its lock is held.

    Attributes:
      result: folder to fill; it becomes `out`.
      finished: pieces that are done already.
    """

    out: Path
    folder: Path
    result: Path
    finished: frozenset[str]

    def finish(self, pieces: Iterable[str]) -> None:
        """Records pieces whose bytes are on the disk."""
        with (self.folder / "journal").open("a", encoding="utf-8") as journal:
            journal.write("".join(f"{piece}\n" for piece in pieces))
            journal.flush()
            os.fsync(journal.fileno())

    def publish(self) -> None:
        """Gives the result its name, and ends the work."""
        sync_tree(self.result)
        rename_durably(self.result, self.out)
        shutil.rmtree(self.folder)


def refuse_used(out: Path) -> None:
    """Refuses to write where something is.

    Raises:
      WorkError: `out` is neither absent nor an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WorkError(f"{out} is not empty; name a folder that does not exist yet, or remove it")


@contextlib.contextmanager
def open_work(out: Path, fingerprint: Any, say: Callable[[str], None]) -> Iterator[Work]:
    """Begins or takes up the work that makes the folder `out`.

    Args:
      fingerprint: what JSON can hold; names everything that the result depends on.
      say: told in a sentence when earlier work is taken up or thrown away.

    Raises:
      WorkError: `out` is in use, or another process makes it now.
    """
    refuse_used(out)
    folder = out.with_name(f".{out.name}.converting")
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    with at(folder), _locked(folder, out):
        refuse_used(out)  # it may have been made while we waited for the lock's file
        work = Work(out, folder, folder / "result", _take_up(folder, digest, say))
        try:
            yield work
        except BaseException:
            if not _journaled(folder, digest):
                shutil.rmtree(folder)  # nothing to go on with
            raise


def _take_up(folder: Path, digest: str, say: Callable[[str], None]) -> frozenset[str]:
    """The pieces that are done, in a folder that is ready for the others."""
    finished = _journaled(folder, digest)
    if finished is not None:
        if finished:
            say(f"going on with earlier work in {folder}: {len(finished)} pieces are done")
        _write_journal(folder, [digest, *sorted(finished)])
        return finished
    if (folder / "journal").exists():
        say(f"beginning afresh: source or settings differ from those of the earlier work in {folder}")
    for child in folder.iterdir():
        if child.name != "lock":
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    (folder / "result").mkdir()
    _write_journal(folder, [digest])
    return frozenset()


def _journaled(folder: Path, digest: str) -> frozenset[str] | None:
    """Pieces in the journal; None if it is not that of this work."""
    journal = folder / "journal"
    lines = journal.read_text(encoding="utf-8").split("\n") if journal.exists() else []
    return frozenset(lines[1:-1]) if len(lines) > 1 and lines[0] == digest else None  # the last may have been cut


def _write_journal(folder: Path, lines: Iterable[str]) -> None:
    # An older journal names fewer pieces, which are then written again.
    text = "".join(f"{line}\n" for line in lines)
    write_durably(folder / "journal", text, mode=SHARED_MODE, sync_name=False)


@contextlib.contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = (folder / "lock").open("w")
        except FileNotFoundError:
            continue  # the work that the folder was for ended just now
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WorkError(
                    f"another process is writing {out} now; wait until it ends, or name another folder"
                ) from None
            if os.fstat(file.fileno()).st_nlink:  # else it is the lock of work that ended just now
                yield
                return


class Settler:
    """Brings written pieces to the disk, and then into the journal, in the background; owns its one thread.

    Args:
      every_bytes: written between two waits for the disk.
    """

    def __init__(self, work: Work, *, every_bytes: int = 256 << 20) -> None:
        self._work, self._every_bytes = work, every_bytes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="settle")
        self._running: Future[None] | None = None
        self._pieces: list[str] = []
        self._files: dict[File, bool] = {}
        self._bytes = 0

    def wrote(self, piece: str, nbytes: int, files: Iterable[File], *, close: bool = False) -> None:
        """Takes note of a piece; with `close`, its files are closed once it is on the disk."""
        self._pieces.append(piece)
        self._files |= dict.fromkeys(files, close)
        self._bytes += nbytes
        if self._bytes >= self._every_bytes:
            self.settle()

    def settle(self) -> None:
        """Starts with everything so far; waits only for what was started before."""
        self._wait()
        pieces, files = self._pieces, self._files
        self._pieces, self._files, self._bytes = [], {}, 0
        self._running = self._pool.submit(self._sync, pieces, files)

    def finish(self) -> None:
        """Everything is on the disk and in the journal."""
        self.settle()
        self._wait()

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()

    def _sync(self, pieces: list[str], files: dict[File, bool]) -> None:
        for file, close in files.items():
            os.fsync(file.descriptor)
            if close:
                file.close()
        self._work.finish(pieces)

    def __enter__(self) -> Settler:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        for file in (file for file, close in self._files.items() if close):
            file.close()


def require_space(folder: Path, nbytes: int) -> None:
    """Refuses to begin what a disk can't hold.

    Raises:
      WorkError: fewer than `nbytes` are free where `folder` is.
    """
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise WorkError(
            f"{folder} needs {nbytes / 1e9:.1f} GB more, but its disk has {free / 1e9:.1f} GB free: make room or name "
            f"a folder on another disk"
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
