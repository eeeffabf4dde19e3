"""What a source of rows is: it can be run through once, and any row can be read again by its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      where: in words, for errors, such as "prompts.jsonl, line 3".
      number: of its line, or row, from 1 on.
      place: what `Source.row` finds it by.
      end: place after it.
      columns: by name.
    """

    where: str
    number: int
    place: int
    end: int
    columns: dict[str, Any]


class Source(Protocol):
    """Rows of one file, folder or function. Safe to call from several threads."""

    @property
    def origin(self) -> str:
        """The source, for errors."""

    @property
    def name(self) -> str:
        """The source, for versions: without the folder that it lies in."""

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """Changes when the source does; None where that can't be known without reading it."""

    def scan(self) -> Iterator[Row]:
        """Every row, in order.

        Raises:
          TaskError: a row can't be read; says which.
        """

    def row(self, place: int, end: int) -> dict[str, Any]:
        """The columns of one row; raises `TaskError` where it can't be read any more."""

    def close(self) -> None:
        """Lets go of files."""


def file_identity(path: str, size: int, mtime_ns: int, **more: Any) -> dict[str, Any]:
    """What a file is known by without reading it."""
    return {"path": path, "size": size, "mtime_ns": mtime_ns, **more}
