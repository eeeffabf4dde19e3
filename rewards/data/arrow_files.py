"""Rows of parquet files and of folders that `datasets` saved: a table that is mapped, not held, where it is large."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from learner_jax.runtime import cache_folder
from rewards.contracts import TaskError
from rewards.data.source import Row, file_identity

_BATCH_ROWS = 1024
#: Larger parquet files are written once to the cache as they lie in memory, and mapped from there.
_MAX_HELD_BYTES = 256 << 20
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_PYARROW = "pip install 'weir[parquet]', or pip install pyarrow"


class ArrowRows:
    """Rows of an Arrow table.

    Args:
      columns: that are read; all if empty.
    """

    def __init__(
        self, table: Any, *, origin: str, name: str, identity: Mapping[str, Any], columns: Sequence[str] = ()
    ) -> None:
        names: list[str] = list(table.column_names)
        if twice := sorted({column for column in names if names.count(column) > 1}):
            raise TaskError(f"{origin} has the column {twice[0]!r} twice; expected distinct names")
        if unknown := [column for column in columns if column not in names]:
            raise TaskError(f"{origin} has no column {unknown[0]!r}, only {', '.join(map(repr, names))[:500]}")
        self._table = table.select(list(columns)) if columns else table
        self.origin, self.name = origin, name
        self._identity = identity

    @property
    def identity(self) -> Mapping[str, Any] | None:
        return self._identity

    def scan(self) -> Iterator[Row]:
        place = 0
        for batch in self._table.to_batches(max_chunksize=_BATCH_ROWS):
            for columns in batch.to_pylist():
                where = f"{self.origin}, row {place + 1}"
                yield Row(where, place + 1, place, place + 1, _plain_row(columns, where))
                place += 1

    def row(self, place: int, end: int) -> dict[str, Any]:
        return _plain_row(self._table.slice(place, 1).to_pylist()[0], f"{self.origin}, row {place + 1}")

    def close(self) -> None:
        """The mapping ends with the table."""


def open_parquet(path: Path, *, origin: str, columns: Sequence[str] = ()) -> ArrowRows:
    """The rows of a parquet file.

    Raises:
      TaskError: pyarrow is not installed, or the file can't be read.
    """
    pyarrow = require_pyarrow(origin)
    import pyarrow.parquet as parquet

    found = _stat(path, origin)
    identity = file_identity(os.path.abspath(path), found.st_size, found.st_mtime_ns, kind="parquet")
    try:
        with parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            if sum(group.total_byte_size for group in groups) <= _MAX_HELD_BYTES:
                table = file.read()
            else:
                table = _mapped(pyarrow, _cached(pyarrow, file, identity))
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{origin} is no parquet file that can be read: {error}") from None
    return ArrowRows(table, origin=origin, name=path.name, identity=identity, columns=columns)


def open_dataset_folder(path: Path, *, origin: str, columns: Sequence[str] = ()) -> ArrowRows:
    """The rows of a folder that `Dataset.save_to_disk` wrote; the package `datasets` is not needed.

    Raises:
      TaskError: it is another kind of folder, pyarrow is not installed, or a file can't be read.
    """
    if (path / _SPLITS).is_file():
        splits = _json(path / _SPLITS, origin).get("splits")
        names = [str(name) for name in splits] if isinstance(splits, list) else []
        shown = ", ".join(names) or "none"
        first = names[0] if names else "train"
        raise TaskError(f"{origin} holds several splits ({shown}); name the folder of one, such as {path / first}")
    if not (path / _STATE).is_file():
        raise TaskError(
            f"{origin} is a folder without {_STATE}; expected a file, or a folder that save_to_disk of the package "
            f"datasets has written"
        )
    pyarrow = require_pyarrow(origin)
    state = _json(path / _STATE, origin)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise TaskError(f"{origin} holds a selection of rows; save it once more after flatten_indices()")
    files = [path / _plain_name(entry, origin) for entry in state.get("_data_files") or ()]
    if not files:
        raise TaskError(f"{origin}: {_STATE} names no files with rows")
    stats = [_stat(file, origin) for file in files]
    try:
        tables = [_mapped(pyarrow, file) for file in files]
        table = pyarrow.concat_tables(tables)
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{origin} can't be read: {error}") from None
    shards = [[file.name, found.st_size, found.st_mtime_ns] for file, found in zip(files, stats, strict=True)]
    size, newest = sum(found.st_size for found in stats), max(found.st_mtime_ns for found in stats)
    identity = file_identity(os.path.abspath(path), size, newest, kind="datasets", shards=shards)
    return ArrowRows(table, origin=origin, name=path.name, identity=identity, columns=columns)


def require_pyarrow(origin: str) -> Any:
    """The module; raises `TaskError` where it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise TaskError(f"{origin} needs pyarrow: {_PYARROW}; or make it JSON lines") from None
    return pyarrow


def _mapped(pyarrow: Any, path: Path) -> Any:
    """The table of a file in Arrow's stream or file format, mapped into memory."""
    mapped = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()


def _cached(pyarrow: Any, file: Any, identity: Mapping[str, Any]) -> Path:
    """The file's rows in the cache, written there if they are not yet."""
    from rewards.data.index import cache_key

    folder = cache_folder() / "rows"
    path = folder / f"{cache_key(identity)}.arrow"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=folder)
    os.close(descriptor)
    try:
        with pyarrow.OSFile(made, "wb") as sink, pyarrow.ipc.new_file(sink, file.schema_arrow) as writer:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS * 16):
                writer.write_batch(batch)
        os.replace(made, path)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
    return path


def _plain_row(columns: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {str(name): _plain(value, f"{where}: {name!r}", str(name)) for name, value in columns.items()}


def _plain(value: Any, where: str, column: str) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(part, where, column) for part in value]
        case {"bytes": bytes() | None, "path": str() | None}:
            raise TaskError(f"{where} holds an image or a sound; {_no_media(column)}")
        case dict():
            return {str(key): _plain(part, where, column) for key, part in value.items()}
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal():
            return str(value)
        case bytes():
            head = base64.b16encode(value[:8]).decode()
            raise TaskError(f"{where} holds {len(value)} bytes (0x{head}...), no text; {_no_media(column)}")
    raise TaskError(f"{where} holds a {type(value).__name__}, expected text, numbers, lists and objects")


def _no_media(column: str) -> str:
    return (
        f"models of text are trained here: leave the column out by naming the others in task.columns, or put a "
        f"description in place of {column!r}"
    )


def _plain_name(entry: Any, origin: str) -> str:
    name = entry.get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise TaskError(f"{origin}: {_STATE} names no file in this folder: {entry!r:.100}")
    return name


def _json(path: Path, origin: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"{origin}: {path.name} can't be read: {error}") from None
    if not isinstance(found, dict):
        raise TaskError(f"{origin}: {path.name} holds a {type(found).__name__}, expected an object")
    return found


def _stat(path: Path, origin: str) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        raise TaskError(f"{origin} can't be read: {getattr(error, 'strerror', None) or error}") from None
