"""Hashes beside a checkpoint's files, so that a flipped bit, a cut or a missing file is noticed before it is read.

The hashes lie in the checkpoint's own folder: they go where it goes, and end when it is deleted. They guard against
accidents, not against somebody who changes files on purpose. What was damaged before it was hashed, a few seconds after
the commit, is not noticed; nor is a file that was added.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

HASHES = "hashes.json"
_SCHEMA = 1
_ALGORITHM = "xxh3_128"
#: Memory of a check is this, times the threads.
_BLOCK_BYTES = 4 << 20
_THREADS = min(8, os.cpu_count() or 1)
#: Beside training; two keep up with a disk.
_BACKGROUND_THREADS = 2
_POLL_S = 0.05


@dataclass(frozen=True)
class FileCheck:
    """What a look at a checkpoint's files found.

    Attributes:
      hashed: whether there are hashes to check against; a process killed right after the commit leaves none.
      problems: each names a file, what was expected and what came.
    """

    hashed: bool
    problems: tuple[str, ...] = ()


class Stopped(Exception):
    """Hashing was asked to stop."""


def write_hashes(folder: Path, *, should_stop: Callable[[], bool] = lambda: False, threads: int = _THREADS) -> None:
    """Hashes every file below `folder` and writes the hashes into it, all or nothing.

    Raises:
      OSError: a file can't be read, or the hashes can't be written.
      Stopped: `should_stop` became true.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(HASHES)
    )
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda name: _hash(folder / name, should_stop), names))
    record = {"schema": _SCHEMA, "algorithm": _ALGORITHM, "files": dict(zip(names, found, strict=True))}
    partial = folder / f"{HASHES}.partial"
    with partial.open("w") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / HASHES)


def check_files(folder: Path) -> FileCheck:
    """Compares the files below `folder` with its hashes; reads all of them, in blocks."""
    try:
        record = json.loads((folder / HASHES).read_text())
        if (record["schema"], record["algorithm"]) != (_SCHEMA, _ALGORITHM):
            return FileCheck(hashed=False)  # another build's; Orbax may still be able to read the arrays
        expected = {name: (int(size), str(digest)) for name, (size, digest) in record["files"].items()}
    except FileNotFoundError:
        return FileCheck(hashed=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return FileCheck(hashed=True, problems=(f"{folder / HASHES}: expected a table of hashes, got {error!r}",))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda item: _problem(folder / item[0], *item[1]), expected.items())
        return FileCheck(hashed=True, problems=tuple(problem for problem in found if problem is not None))


def _problem(path: Path, size: int, digest: str) -> str | None:
    try:
        if (got := path.stat().st_size) != size:
            return f"{path}: expected {size} bytes, got {got}"
        if (found := _hash(path)[1]) != digest:
            return f"{path}: expected content with {_ALGORITHM} {digest}, got {found}"
    except FileNotFoundError:
        return f"{path}: expected {size} bytes, but the file is missing"
    except OSError as error:
        return f"{path}: expected {size} bytes, but it can't be read: {error}"
    return None


def _hash(path: Path, should_stop: Callable[[], bool] = lambda: False) -> tuple[int, str]:
    state, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            if should_stop():
                raise Stopped
            state.update(block)
            size += len(block)
    return size, state.hexdigest()


class Hashing:
    """Hashes one checkpoint in the background, once it is committed.

    Args:
      folder: where the checkpoint will be.
      is_writing: whether it is still being written.
      on_end: called in the background with whether there are hashes now, and the seconds that they took; an OSError of
        its own is raised by `finish`.
    """

    def __init__(self, folder: Path, *, is_writing: Callable[[], bool], on_end: Callable[[bool, float], None]) -> None:
        self._folder, self._is_writing, self._on_end = folder, is_writing, on_end
        self._stop = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint-hashes", daemon=True)
        self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """Waits for the hashes, and does without them after `timeout_s`."""
        self._thread.join(timeout_s)
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while self._is_writing():
            if self._stop.wait(_POLL_S):
                return
        if not self._folder.is_dir():  # the save failed, which is told to whoever waits for it
            return
        started, hashed = time.monotonic(), False
        with contextlib.suppress(OSError, Stopped):
            write_hashes(self._folder, should_stop=self._stop.is_set, threads=_BACKGROUND_THREADS)
            hashed = True
        try:
            self._on_end(hashed, time.monotonic() - started)
        except OSError as error:
            self._failure = error
