"""Rows by number: each is read from its source when it is asked for, and must still be the row that was indexed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from rewards.contracts import Problem, TaskError
from rewards.data.columns import Columns
from rewards.data.index import Refusal, RowIndex, build_index, key_of
from rewards.data.messages import Message
from rewards.data.open import open_source
from rewards.data.source import Source
from rewards.settings import ProblemSettings

#: Settings that an index depends on.
_READS = (
    "question_column",
    "answer_column",
    "id_column",
    "messages_column",
    "system_column",
    "tools_column",
    "columns",
    "curriculum",
)


class RowTable:
    """The rows of one source as problems. Safe to call from several threads."""

    def __init__(self, source: Source, columns: Columns, index: RowIndex) -> None:
        self._source, self._columns, self.index = source, columns, index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def origin(self) -> str:
        return self._source.origin

    @property
    def name(self) -> str:
        """The source and a digest of its rows."""
        return f"{self._source.name}:{self.index.digest}"

    @property
    def keys(self) -> np.ndarray:
        """uint64[N], the same for the same question."""
        return self.index.keys

    def problem(self, number: int) -> Problem:
        """The problem of row `number`, from 0 on.

        Raises:
          TaskError: the source has changed since the start.
        """
        place, end = map(int, self.index.places[number])
        try:
            row = self._source.row(place, end)
            read = self._columns.read(f"{self.origin}, row {number + 1}", number, row)
        except TaskError as error:
            raise TaskError(f"{self.origin} has changed since this process began: {error}") from None
        if key_of(read.identity) != int(self.index.keys[number]):
            raise TaskError(
                f"{self.origin} has changed since this process began: row {number + 1} has another question; start "
                f"again, and leave the file alone while a run uses it"
            )
        return read.problem

    def rows(self) -> Iterator[dict[str, Any]]:
        """The columns of every row, in order."""
        return (row.columns for row in islice(self._source.scan(), len(self)))

    def close(self) -> None:
        self._source.close()


def open_table(
    data: str,
    settings: ProblemSettings,
    *,
    setting: str,
    options: Mapping[str, Any] | None = None,
    tools: tuple[Message, ...] = (),
    refusal: Refusal | None = None,
    known_by: str = "",
) -> RowTable:
    """Opens a source, and runs through it once unless the cache knows it.

    Args:
      data: file, folder or function.
      setting: that names it.
      options: arguments of a function.
      tools: definitions that every row has.
      refusal: asked for every row; `known_by` names it.

    Raises:
      TaskError, DoorError: the source or a row can't be used.
    """
    source = open_source(data, setting=setting, options=options, columns=settings.columns, most=settings.num_problems)
    try:
        columns = Columns(settings, tools)
        index = build_index(
            source,
            columns,
            most=settings.num_problems,
            setting=setting,
            known_by=_known_by(settings, known_by),
            refusal=refusal,
        )
        return RowTable(source, columns, index)
    except BaseException:
        source.close()
        raise


def _known_by(settings: ProblemSettings, more: str) -> str:
    values: dict[str, Any] = settings.model_dump(mode="json", include=set(_READS))
    return json.dumps([values, bool(settings.system), more], sort_keys=True)
