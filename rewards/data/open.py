"""From the name of a source in the settings to the source: a file or folder by what it is, a function by its name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.contracts import TaskError
from rewards.data.arrow_files import open_dataset_folder, open_parquet
from rewards.data.functions import FunctionRows
from rewards.data.source import Source
from rewards.data.text_files import CsvFile, JsonLinesFile
from rewards.settings import names_file

_MAGIC = b"PAR1"
_CSV = (".csv", ".tsv")


def open_source(
    data: str, *, setting: str, options: Mapping[str, Any] | None = None, columns: Sequence[str] = (), most: int
) -> Source:
    """The source that a setting names.

    Args:
      setting: for errors.
      options: arguments of a function.
      columns: that are read; all if empty.
      most: rows of a function that are read.

    Raises:
      TaskError: there is no such file, it is of no kind that is read, or a package is missing.
      DoorError: the function can't be used.
    """
    if not names_file(data):
        if columns:
            raise TaskError(f"task.columns is for files and folders; {setting} {data!r} is a function, give them there")
        return FunctionRows(data, options or {}, setting=setting, most=most)
    if options:
        name = "task.options" if setting == "task.data" else setting.replace("data", "options")
        raise TaskError(f"{name} {', '.join(options)}: a file takes none; a function of {setting} does")
    return open_file(data, setting=setting, columns=columns)


def open_file(data: str, *, setting: str, columns: Sequence[str] = ()) -> Source:
    """The source at a path; raises as `open_source` does."""
    path, origin = Path(data), data
    try:
        exists, is_folder, is_file = path.exists(), path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise TaskError(f"{setting} {data!r} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if is_folder:
        return open_dataset_folder(path, origin=origin, columns=columns)
    if not is_file:
        raise TaskError(f"{setting} {data!r} can't be read: {'not a file' if exists else 'No such file'}")
    if path.suffix.lower() == ".parquet" or _head(path, origin) == _MAGIC:
        return open_parquet(path, origin=origin, columns=columns)
    source = CsvFile(path, origin=origin) if path.suffix.lower() in _CSV else JsonLinesFile(path, origin=origin)
    if columns:
        source.close()
        raise TaskError(f"task.columns is for parquet and folders of datasets, not for {origin}, whose rows are text")
    return source


def _head(path: Path, origin: str) -> bytes:
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), len(_MAGIC), 0)
    except OSError as error:
        raise TaskError(f"{origin} can't be read: {error.strerror or error}") from error
