"""Rows of a suite's file, read strictly."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rewards.contracts import TaskError
from rewards.data import open_file, sound_text
from tools.evaluation.errors import SuiteError
from tools.evaluation.suites import Suite

#: where it is, in words; its number from 1 on; its columns
Row = tuple[str, int, dict[str, Any]]


def read_rows(suite: Suite) -> list[Row]:
    """The first rows of the suite's file, as many as its limit lets in.

    Raises:
      SuiteError: there are none, or a row can't be read; says the file and the row.
    """
    settings = suite.settings
    path = suite.folder / Path(settings.path).expanduser()
    try:
        rows = list(_rows(path, settings.limit))
    except TaskError as error:
        said = str(error).replace("task.columns", "other columns")
        raise SuiteError(f"suite {suite.name}: {said}") from None
    if not rows:
        raise SuiteError(f"suite {suite.name}: {path} holds no problems; expected a row for each")
    return rows


def _rows(path: Path, limit: int) -> Iterator[Row]:
    source = open_file(str(path), setting="path")
    try:
        for row in islice(source.scan(), limit or None):
            yield row.where, row.number, row.columns
    finally:
        source.close()


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
        return sound_text(value, f"{where}: {column!r}")
    except TaskError as error:
        raise SuiteError(str(error)) from None
