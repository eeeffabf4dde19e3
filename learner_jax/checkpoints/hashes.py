"""Hashes beside a checkpoint's files, so that a flipped bit, a cut or a missing file is noticed before it is read.

The hashes lie in the checkpoint's own folder: they go where it goes, and end when it is deleted. They guard against
accidents, not against somebody who changes files on purpose. What was damaged before it was hashed, a few seconds after
the commit, is not noticed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from learner_jax.runtime import SHARED_MODE, write_durably

HASHES = "hashes.json"
_SCHEMA = 1
_ALGORITHM = "xxh3_128"
#: Memory of a check is this, times the threads.
_BLOCK_BYTES = 4 << 20
_THREADS = min(8, os.cpu_count() or 1)


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
    keep_hashes(folder, hash_files(folder, should_stop=should_stop, threads=threads))


def hash_files(
    folder: Path, *, should_stop: Callable[[], bool] = lambda: False, threads: int = _THREADS
) -> dict[str, tuple[int, str]]:
    """Name below `folder` -> (bytes, hash) of every file, which is read from start to end.

    Raises:
      OSError: a file can't be read.
      Stopped: `should_stop` became true.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.removeprefix(".").startswith(HASHES)
    )
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda name: _hash(folder / name, should_stop), names))
    return dict(zip(names, found, strict=True))


def keep_hashes(folder: Path, found: Mapping[str, tuple[int, str]]) -> None:
    """Writes hashes into the folder that they are of, all or nothing. Raises OSError if they can't be written."""
    record = {"schema": _SCHEMA, "algorithm": _ALGORITHM, "files": found}
    write_durably(folder / HASHES, json.dumps(record, indent=1), mode=SHARED_MODE, sync_name=False)


def check_files(folder: Path) -> FileCheck:
    """Compares the files below `folder` with its hashes; reads all of them, in blocks."""
    try:
        record = json.loads((folder / HASHES).read_text())
        if (record["schema"], record["algorithm"]) != (_SCHEMA, _ALGORITHM):
            return FileCheck(hashed=False)  # another build's; Orbax may still be able to read the arrays
        expected = {name: (int(size), str(digest)) for name, (size, digest) in record["files"].items()}
        if any(name.startswith("/") or ".." in name.split("/") for name in expected):
            raise ValueError("a file outside the checkpoint")
    except FileNotFoundError:
        return FileCheck(hashed=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return FileCheck(hashed=True, problems=(f"{folder / HASHES}: expected a table of hashes, got {error!r}",))
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda item: _problem(folder / item[0], *item[1]), expected.items())
        problems = [problem for problem in found if problem is not None]
    return FileCheck(hashed=True, problems=(*problems, *_added(folder, set(expected))))


def _added(folder: Path, expected: set[str]) -> Iterator[str]:
    """Files among the arrays and the manifest that were not there when the others were hashed."""
    for part in folder.iterdir():
        for path in _below(part) if part.is_dir() else ():
            if path.relative_to(folder).as_posix() not in expected:
                yield f"{path}: was added after the checkpoint was written, expected no such file: move it away"


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())


def _problem(path: Path, size: int, digest: str) -> str | None:
    try:
        if (got := path.stat().st_size) != size:
            return f"{path}: expected {size} bytes, got {got}"  # without reading it
        got, found = _hash(path)
        if got != size:
            return f"{path}: expected {size} bytes, got {got}"
        if found != digest:
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
