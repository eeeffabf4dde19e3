"""Rows of a user's data: from a JSONL file, or from a function that gives dicts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from learner_jax.runtime import Door, WeirError, raised
from rewards.contracts import Problem, TaskError
from rewards.sandbox import to_json
from rewards.settings import TaskSettings, names_file
from rewards.tasks.jsonl_lines import read_file, records, text_of

DATA = Door(kind="data", setting="task.data")
_DIGEST_CHARACTERS = 12
_EXPECTED = 'a JSONL file, such as "prompts.jsonl", or a function that gives rows, such as "my_data:rows"'


@dataclass(frozen=True)
class Rows:
    """The problems of a source of rows.

    Attributes:
      origin: the source, for errors.
      name: the source and a digest of the rows.
    """

    origin: str
    name: str
    problems: list[Problem]


def read_rows(settings: TaskSettings) -> Rows:
    """Every row as a problem; its metadata are the columns, and "question" and "answer" under these names.

    Raises:
      TaskError: there are none, or one lacks a column or holds what is no plain data.
      DoorError: the function can't be used.
    """
    if not settings.data:
        raise TaskError(f"task.data is empty; a task of rows needs {_EXPECTED}")
    is_file = names_file(settings.data)
    found = _of_file(settings) if is_file else _of_function(settings)
    digest, problems = hashlib.sha256(), list[Problem]()
    for where, number, row in found:
        problem = _problem(where, number, row, settings)
        digest.update(json.dumps(to_json(problem.metadata), sort_keys=True).encode("utf-8", "surrogatepass") + b"\n")
        problems.append(problem)
    if not problems:
        raise TaskError(f"task.data {settings.data!r} holds no rows")
    source = Path(settings.data).name if is_file else settings.data
    return Rows(settings.data, f"{source}:{digest.hexdigest()[:_DIGEST_CHARACTERS]}", problems)


def _of_file(settings: TaskSettings) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if settings.options:
        raise TaskError(f"task.options {', '.join(settings.options)}: a file takes none; a function of task.data does")
    payload = read_file(settings.data, setting="task.data", wanted="")
    yield from islice(records(payload, origin=settings.data), settings.num_problems)


def _of_function(settings: TaskSettings) -> Iterator[tuple[str, int, dict[str, Any]]]:
    origin = f"task.data {settings.data!r}"
    function = DATA.with_keywords(*settings.options).open(settings.data)
    try:
        for number, row in enumerate(islice(function(**settings.options), settings.num_problems), start=1):
            where = f"{origin}, row {number}"
            if not isinstance(row, dict) or not all(type(key) is str for key in row):
                raise TaskError(f"{where} is a {type(row).__name__}, expected a dict with names of columns")
            try:
                to_json(row)
            except TypeError as error:
                raise TaskError(f"{where} can't be handed to other processes: {error}") from None
            yield where, number, row
    except WeirError:
        raise
    except Exception as error:
        raise TaskError(f"{origin} gave no rows: {raised(error)}") from error


def _problem(where: str, number: int, row: dict[str, Any], settings: TaskSettings) -> Problem:
    columns = {"question": settings.question_column}
    if settings.answer_column:
        columns["answer"] = settings.answer_column
    texts = {"answer": ""}
    for name, column in columns.items():
        texts[name] = _text(row, column, where, setting=f"task.{name}_column")
        if name != column and name in row:
            raise TaskError(
                f"{where} has a column {name!r}, but task.{name}_column is {column!r}, which functions also find under "
                f"{name!r}: rename the first"
            )
    known = {name: row[column] for name, column in columns.items()}
    return Problem(number, texts["question"], texts["answer"], {**row, **known})


def _text(row: dict[str, Any], column: str, where: str, *, setting: str) -> str:
    """The text of a column; numbers count as text."""
    if column not in row:
        none = ', or to "" if there is none' if setting == "task.answer_column" else ""
        raise TaskError(
            f"{where} has no column {column!r}, only {', '.join(map(repr, row))[:500]}; set {setting}{none}"
        )
    value = row[column]
    return str(value) if type(value) in (int, float) else text_of(row, column, where)
