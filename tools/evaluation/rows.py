"""Rows of a suite's file, JSON lines or parquet, read strictly."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rewards.contracts import TaskError
from rewards.tasks import read_file, records, text_of
from tools.evaluation.errors import SuiteError
from tools.evaluation.suites import Suite

#: where it is, in words; its number from 1 on; its columns
Row = tuple[str, int, dict[str, Any]]
_BATCH_ROWS = 1024


def read_rows(suite: Suite) -> list[Row]:
    """The first rows of the suite's file, as many as its limit lets in.

    Raises:
      SuiteError: there are none, or a row can't be read; says the file and the row.
    """
    settings = suite.settings
    path = suite.folder / Path(settings.path).expanduser()
    found = _json_rows(path) if settings.source == "jsonl" else _parquet_rows(path)
    try:
        rows = list(islice(found, settings.limit or None))
    except TaskError as error:
        raise SuiteError(f"suite {suite.name}: {error}") from None
    if not rows:
        raise SuiteError(f"suite {suite.name}: {path} holds no problems; expected a row for each")
    return rows


def text_in(row: dict[str, Any], column: str, where: str, *, key: str) -> str:
    """The text of a column; numbers count as text.

    Args:
      key: of the suite that names the column, for errors.
    Raises:
      SuiteError: it is missing, blank, no text, or holds characters that no model should get.
    """
    if column not in row:
        raise SuiteError(f"{where} has no {column!r}, only {', '.join(map(repr, row))[:500]}; see {key} of the suite")
    value = row[column]
    if type(value) in (int, float):
        return str(value)
    try:
        return text_of(row, column, where)
    except TaskError as error:
        raise SuiteError(str(error)) from None


def _json_rows(path: Path) -> Iterator[Row]:
    origin = str(path)
    yield from records(read_file(origin, setting="path", wanted="expected JSON lines"), origin=origin)


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SuiteError(
            f"{path} is parquet, which needs pyarrow: pip install pyarrow, or make it JSON lines"
        ) from None
    if not path.is_file():
        raise SuiteError(f"path {str(path)!r} can't be read: {'not a file' if path.exists() else 'No such file'}")
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", number, _plain(row, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise SuiteError(f"{path} is no parquet file that can be read: {error}") from None


def _plain(value: Any, where: str) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(part, where) for part in value]
        case dict():
            return {str(key): _plain(part, where) for key, part in value.items()}
    raise SuiteError(f"{where} holds a {type(value).__name__}, expected text, numbers, lists and objects")
