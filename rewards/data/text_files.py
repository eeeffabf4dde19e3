"""Rows of JSON-lines and CSV files: a scan notes where each begins, and one is read again by its bytes alone."""

from __future__ import annotations

import csv
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from learner_jax.runtime import read_at
from rewards.contracts import TaskError
from rewards.data.encodings import BOM, MAX_LINE_BYTES, decoded, require_plain_text
from rewards.data.json_lines import record_of
from rewards.data.source import Row, file_identity

_HEAD_BYTES = 16


class _TextFile:
    """A plain file, opened once; rows are read at their place, by any thread."""

    def __init__(self, path: Path, *, origin: str) -> None:
        self._path, self.origin = path, origin
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise TaskError(f"{origin} can't be read: {getattr(error, 'strerror', None) or error}") from error
        self._close = weakref.finalize(self, os.close, self._file)
        self._found = os.fstat(self._file)
        head = read_at(self._file, _HEAD_BYTES, 0)
        require_plain_text(head, origin)
        self._start = len(BOM) if head.startswith(BOM) else 0

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def identity(self) -> Mapping[str, Any] | None:
        return file_identity(os.path.abspath(self._path), self._found.st_size, self._found.st_mtime_ns)

    def close(self) -> None:
        self._close()

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line with its end, and where it begins.

        Raises:
          TaskError: one is too long.
        """
        place, number = self._start, 1
        with self._path.open("rb") as file:
            file.seek(place)
            while line := file.readline(MAX_LINE_BYTES + 2):
                if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    raise TaskError(
                        f"{self.origin}, line {number} has more than the {MAX_LINE_BYTES} bytes that are read; shorten "
                        "its fields, or leave the row out"
                    )
                yield place, line
                place, number = place + len(line), number + 1

    def _bytes(self, place: int, end: int) -> bytes:
        return read_at(self._file, end - place, place)


class JsonLinesFile(_TextFile):
    """One JSON object a line; blank lines are skipped."""

    def scan(self) -> Iterator[Row]:
        for number, (place, line) in enumerate(self._lines(), start=1):
            if line.strip():
                where = f"{self.origin}, line {number}"
                yield Row(where, number, place, place + len(line), record_of(line.rstrip(b"\r\n"), where))

    def row(self, place: int, end: int) -> dict[str, Any]:
        return record_of(self._bytes(place, end).rstrip(b"\r\n"), f"{self.origin}, byte {place}")


class CsvFile(_TextFile):
    """Rows under a line of column names; every value is text. Fields with line ends stand in quotes (RFC 4180)."""

    def __init__(self, path: Path, *, origin: str) -> None:
        super().__init__(path, origin=origin)
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # of the process: there is no other
        self._dialect = {"delimiter": "\t" if path.suffix.lower() == ".tsv" else ",", "strict": True}
        self._names: list[str] = []

    def scan(self) -> Iterator[Row]:
        lines = _CountedLines(self._lines(), self.origin, self._start)
        reader = csv.reader(lines, **self._dialect)  # type: ignore[arg-type]
        names: list[str] = []
        while True:
            place, number = lines.next_place, lines.number + 1
            where = f"{self.origin}, line {number}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise TaskError(f"{where} is not CSV: {error}") from None
            if not fields:
                continue
            if not names:
                self._names = names = _column_names(fields, where)
                continue
            yield Row(where, number, place, lines.next_place, self._columns(fields, where))

    def row(self, place: int, end: int) -> dict[str, Any]:
        where = f"{self.origin}, byte {place}"
        if not self._names:  # an index from the cache has spared the scan
            next(self.scan(), None)
        text = decoded(self._bytes(place, end), where)
        try:
            found = [fields for fields in csv.reader(text.splitlines(keepends=True), **self._dialect) if fields]  # type: ignore[arg-type]
        except csv.Error as error:
            raise TaskError(f"{where} is not CSV: {error}") from None
        if len(found) != 1:
            raise TaskError(f"{where} holds {len(found)} rows, expected 1: the file has changed")
        return self._columns(found[0], where)

    def _columns(self, fields: list[str], where: str) -> dict[str, Any]:
        if len(fields) != len(self._names):
            raise TaskError(
                f"{where} has {len(fields)} fields, expected {len(self._names)} ({', '.join(self._names)[:200]}); a "
                f"comma or a line end inside a field needs quotes around it"
            )
        return dict(zip(self._names, fields, strict=True))


class _CountedLines:
    """Lines as text for the CSV reader, which takes as many as a row has."""

    def __init__(self, lines: Iterator[tuple[int, bytes]], origin: str, start: int) -> None:
        self._inner, self._origin = lines, origin
        self.next_place, self.number = start, 0

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        place, line = next(self._inner)
        self.number += 1
        self.next_place = place + len(line)
        return decoded(line, f"{self._origin}, line {self.number}")


def _column_names(fields: list[str], where: str) -> list[str]:
    names = [field.strip() for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not all(names):
        what = f"names the column {twice[0]!r} twice" if twice else "has a column without a name"
        raise TaskError(f"{where} {what}; expected the names of the columns in a file's first line")
    return names
