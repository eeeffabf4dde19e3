"""From a row's columns to a problem: which columns hold the question, the messages, the reference and the tools."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rewards.contracts import Problem, TaskError
from rewards.data.json_lines import sound_text
from rewards.data.messages import Message, identity_of, question_of, read_messages, read_tools, with_system
from rewards.settings import ProblemSettings


@dataclass(frozen=True)
class ReadRow:
    """What a row holds.

    Attributes:
      identity: text by which equal problems are known, and the split is chosen.
      id: "" where no column names it.
      difficulty: NaN where no column has it.
    """

    problem: Problem
    identity: str
    id: str
    difficulty: float


class Columns:
    """Reads rows by the columns that the settings name.

    Args:
      tools: definitions that every row has, those of `task.tools`.
    """

    def __init__(self, settings: ProblemSettings, tools: tuple[Message, ...] = ()) -> None:
        self._settings, self._tools = settings, tools

    def read(self, where: str, number: int, row: dict[str, Any]) -> ReadRow:
        """The problem of a row.

        Raises:
          TaskError: a column is missing, or holds what it can't; says the row, and the setting to change.
        """
        settings = self._settings
        messages = self._messages(row, where)
        question = question_of(messages) if settings.messages_column else _text(row, "question", where, settings)
        answer = _text(row, "answer", where, settings) if settings.answer_column else ""
        prompt, tools = self._prompt(question, messages, row, where), self._row_tools(row, where)
        known = {"question": question if settings.messages_column else row[settings.question_column]}
        if settings.answer_column:
            known["answer"] = row[settings.answer_column]
        problem = Problem(number, question, answer, {**row, **known}, prompt=prompt, tools=tools)
        identity = identity_of(messages) if messages else question.strip()
        return ReadRow(problem, identity, self._id(row, where), self._difficulty(row, where))

    def _messages(self, row: dict[str, Any], where: str) -> tuple[Message, ...]:
        column = self._settings.messages_column
        if not column:
            return ()
        _require(row, column, where, "task.messages_column")
        _require_free(row, "question", column, where, "task.messages_column")
        return read_messages(row[column], f"{where}, {column!r}")

    def _prompt(
        self, question: str, messages: tuple[Message, ...], row: dict[str, Any], where: str
    ) -> tuple[Message, ...] | None:
        """The messages that the policy is given; None where the prompt template says it all."""
        settings = self._settings
        system = settings.system
        if column := settings.system_column:
            _require(row, column, where, "task.system_column")
            system = sound_text(row[column], f"{where}: {column!r}") if row[column] not in (None, "") else system
        if not messages:
            if not (system or self._tools or settings.tools_column):
                return None
            messages = ({"role": "user", "content": settings.prompt_template.replace("{question}", question)},)
        return with_system(messages, system, where) if system else messages

    def _row_tools(self, row: dict[str, Any], where: str) -> tuple[Message, ...]:
        column = self._settings.tools_column
        if not column:
            return self._tools
        _require(row, column, where, "task.tools_column")
        return (*self._tools, *read_tools(row[column], f"{where}, {column!r}"))

    def _id(self, row: dict[str, Any], where: str) -> str:
        column = self._settings.id_column
        return _value_text(row, column, where, setting="task.id_column") if column else ""

    def _difficulty(self, row: dict[str, Any], where: str) -> float:
        curriculum = self._settings.curriculum
        if curriculum is None or not curriculum.column:
            return math.nan
        column = curriculum.column
        _require(row, column, where, "task.curriculum.column")
        try:
            value = float(row[column]) if not isinstance(row[column], bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            raise TaskError(
                f"{where}: {column!r} is {row[column]!r:.100}, expected a number; see task.curriculum.column"
            )
        return value


def _text(row: dict[str, Any], name: str, where: str, settings: ProblemSettings) -> str:
    """The text of the question's or the answer's column, which functions find under its plain name too."""
    column = settings.question_column if name == "question" else settings.answer_column
    setting = f"task.{name}_column"
    text = _value_text(row, column, where, setting=setting)
    if name != column:
        _require_free(row, name, column, where, setting)
    return text


def _value_text(row: dict[str, Any], column: str, where: str, *, setting: str) -> str:
    """The text of a column; numbers count as text."""
    none = ', or to "" if there is none' if setting == "task.answer_column" else ""
    _require(row, column, where, setting, none)
    value = row[column]
    return str(value) if type(value) in (int, float) else sound_text(value, f"{where}: {column!r}")


def _require(row: dict[str, Any], column: str, where: str, setting: str, more: str = "") -> None:
    if column not in row:
        raise TaskError(
            f"{where} has no column {column!r}, only {', '.join(map(repr, row))[:500]}; set {setting}{more}"
        )


def _require_free(row: dict[str, Any], name: str, column: str, where: str, setting: str) -> None:
    if name in row:
        raise TaskError(
            f"{where} has a column {name!r}, but {setting} is {column!r}, which functions also find under {name!r}: "
            f"rename the first"
        )
