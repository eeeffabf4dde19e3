"""What one run through a source leaves: where each row is, and what its problem is known by; so rows need no memory.

The run checks every row. Of a large file the outcome is kept in Weir's cache, so that the other processes of a run, and
its next start, read it instead: 32 bytes a row, mapped. Nothing is written beside the user's data.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from learner_jax.runtime import cache_folder
from rewards.contracts import Problem, TaskError
from rewards.data.columns import Columns, ReadRow
from rewards.data.orders import stable_hash
from rewards.data.source import Row, Source
from rewards.sandbox import to_json

#: Changes whenever rows are read, checked or hashed in another way.
_FORMAT = 1
#: Smaller sources are run through at every start, which takes less than a second.
_KEPT_ROWS = 50_000
_DIGEST_CHARACTERS = 12
_MAX_REFUSALS = 10
_ARRAYS = {"places": np.int64, "keys": np.uint64, "difficulties": np.float64}

#: Why a row can't be used, beyond what its columns say; "" if it can.
Refusal = Callable[[Problem], str]


@dataclass(frozen=True)
class RowIndex:
    """N rows.

    Attributes:
      places: int64[N, 2], where each row begins and ends.
      keys: uint64[N], hash by which equal problems are known, and by which the split is chosen.
      difficulties: float64[N], NaN where no column has them.
      digest: of all rows.
    """

    places: np.ndarray
    keys: np.ndarray
    difficulties: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.keys)


def key_of(identity: str) -> int:
    """The hash of a problem's text: `keys` holds it."""
    return stable_hash("split", identity)


def cache_key(identity: Mapping[str, Any]) -> str:
    """A file's name in the cache."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def build_index(
    source: Source, columns: Columns, *, most: int, setting: str, known_by: str, refusal: Refusal | None = None
) -> RowIndex:
    """The index of a source, of its first rows.

    Args:
      most: rows that are read.
      setting: that names the source, for errors.
      known_by: everything that the index depends on beside the source, such as the names of columns.
      refusal: asked for every row.

    Raises:
      TaskError: there are no rows, or one can't be used; says which.
    """
    identity = source.identity
    path = None
    if identity is not None:
        key = cache_key({"format": _FORMAT, "source": dict(identity), "known_by": known_by, "most": most})
        path = cache_folder() / "rows" / key
        if (kept := _load(path)) is not None:
            return kept
    index = _scanned(source, columns, most=most, setting=setting, refusal=refusal)
    if path is not None and len(index) >= _KEPT_ROWS:
        _keep(index, path)
    return index


def read_rows(source: Source, columns: Columns, *, most: int) -> Iterator[tuple[Row, ReadRow]]:
    """The first rows, each with what it holds; raises `TaskError` at one that can't be used."""
    for row in islice(source.scan(), most):
        yield row, columns.read(row.where, row.number, row.columns)


def _scanned(source: Source, columns: Columns, *, most: int, setting: str, refusal: Refusal | None) -> RowIndex:
    places, keys, difficulties = _Growing((2,), np.int64), _Growing((), np.uint64), _Growing((), np.float64)
    ids, digest, refused = _Growing((), np.uint64), hashlib.sha256(), list[str]()
    num_rows = num_refused = 0
    for row, read in read_rows(source, columns, most=most):
        num_rows += 1
        plain = json.dumps(to_json(read.problem.metadata), sort_keys=True)
        digest.update(plain.encode("utf-8", "surrogatepass") + b"\n")
        places.add((row.place, row.end))
        keys.add(key_of(read.identity))
        difficulties.add(read.difficulty)
        if read.id:
            ids.add(stable_hash("id", read.id))
        if refusal is not None and (why := refusal(read.problem)):
            num_refused += 1
            if len(refused) < _MAX_REFUSALS:
                refused.append(f"row {row.number}: {why}")
    if not num_rows:
        raise TaskError(f"{setting} {source.origin!r} holds no rows")
    _require_distinct(ids.array(), source.origin)
    if refused:
        shown = "\n  ".join(refused)
        raise TaskError(f"{source.origin}: task.reward can't score {num_refused} of {num_rows} rows:\n  {shown}")
    return RowIndex(places.array(), keys.array(), difficulties.array(), digest.hexdigest()[:_DIGEST_CHARACTERS])


def _require_distinct(ids: np.ndarray, origin: str) -> None:
    order = np.argsort(ids, kind="stable")
    (repeats,) = np.nonzero(ids[order][1:] == ids[order][:-1])
    if len(repeats):
        second, first = min((int(order[at + 1]), int(order[at])) for at in repeats)
        raise TaskError(
            f"{origin}: row {second + 1} has the id of row {first + 1}; ids must be unique (task.id_column), as those "
            f"of {len(repeats)} rows are not"
        )


class _Growing:
    """An array that grows by doubling: a list of ten million numbers would take ten times as much."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._items = np.empty((1024, *shape), dtype)
        self._count = 0

    def add(self, item: Any) -> None:
        if self._count == len(self._items):
            self._items = np.concatenate([self._items, np.empty_like(self._items)])
        self._items[self._count] = item
        self._count += 1

    def array(self) -> np.ndarray:
        return self._items[: self._count].copy()


def _load(path: Path) -> RowIndex | None:
    """The index that is kept there; None if there is none that can be read."""
    try:
        digest = str(json.loads((path / "about.json").read_bytes())["digest"])
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sizes = {len(array) for array in arrays.values()}
    if len(sizes) != 1 or any(array.dtype != _ARRAYS[name] for name, array in arrays.items()):
        return None
    return RowIndex(**arrays, digest=digest)


def _keep(index: RowIndex, path: Path) -> None:
    """Writes the index whole or not at all; a disk that is full costs the next start time, and nothing else."""
    made = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent)
        for name in _ARRAYS:
            np.save(Path(made) / f"{name}.npy", getattr(index, name), allow_pickle=False)
        (Path(made) / "about.json").write_text(json.dumps({"digest": index.digest}))
        os.replace(made, path)
    except OSError:  # also where another process was quicker
        if made:
            shutil.rmtree(made, ignore_errors=True)
