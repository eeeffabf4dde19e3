"""A run's reward on its own: it judges answers to rows that nobody has to look up in the run's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rewards.contracts import Problem, RewardRequest, RewardResult, Task, failed
from rewards.data import question_of, read_messages
from rewards.settings import TaskSettings
from rewards.tasks.create import create_task
from rewards.tasks.jsonl_math import gold_of
from rewards.tasks.row_reward import RowReward, create_row_reward


class TaskJudge:
    """Judges answers to rows as a task scores answers to its problems.

    A row has the columns of the task's data; "question" and "answer" are taken where the settings' names are missing.
    Where a task has several sources, "source" is the label of the row's.
    """

    def __init__(self, settings: TaskSettings, task: Task) -> None:
        self._settings = settings
        self._task = task

    def judge(self, answer: str, row: Mapping[str, Any]) -> RewardResult:
        """The task's verdict; "refused" for a row that is none of its problems. Whatever both are, it returns."""
        try:
            problem = problem_of(row, self._settings)
        except ValueError as error:
            return failed(str(error), "refused")
        return self._task.score(RewardRequest(problem, answer, "stop"))

    def close(self) -> None:
        self._task.close()


class RewardJudge:
    """Judges answers to rows by the reward of a task of rows, whose data need not be there."""

    def __init__(self, settings: TaskSettings, reward: RowReward) -> None:
        self._settings = settings
        self._reward = reward

    def judge(self, answer: str, row: Mapping[str, Any]) -> RewardResult:
        """The reward's verdict; "refused" for a row without its columns. Whatever both are, it returns."""
        try:
            problem = problem_of(row, self._settings)
        except ValueError as error:
            return failed(str(error), "refused")
        return self._reward.score(problem.question, answer, problem.metadata)

    def close(self) -> None:
        self._reward.close()


def create_judge(settings: TaskSettings, *, seed: int, deadline_s: float, num_workers: int) -> TaskJudge | RewardJudge:
    """The judge of a run's task.

    Raises:
      TaskError, DoorError: the task's settings or data can't be used.
    """
    if settings.provider == "rows" and (settings.immediate_reward or settings.rewards):
        return RewardJudge(settings, create_row_reward(settings, deadline_s=deadline_s, num_workers=num_workers))
    return TaskJudge(settings, create_task(settings, seed=seed, deadline_s=deadline_s, num_workers=num_workers))


def problem_of(row: Mapping[str, Any], settings: TaskSettings) -> Problem:
    """The problem that a row stands for.

    Raises:
      ValueError: a column is missing, or holds no text.
    """
    if settings.sources:
        return _problem_of_source(row, settings)
    question_column, answer_column = settings.question_column, settings.answer_column
    if settings.provider == "jsonl_math":
        question_column = str(settings.options.get("question_key", "question"))
        answer_column = str(settings.options.get("answer_key", "answer"))
    if settings.messages_column and settings.messages_column in row:
        row = {**row, "question": question_of(read_messages(row[settings.messages_column], "the row's messages"))}
    question = _text(row, question_column, "question", needed=False)
    reference = _text(row, answer_column, "answer", needed=settings.provider == "jsonl_math") if answer_column else ""
    if settings.provider == "jsonl_math":
        reference = gold_of(reference)
    if settings.provider != "rows" and (
        settings.provider == "reasoning_gym" or isinstance(row.get("metadata"), Mapping)
    ):
        metadata = row.get("metadata")
        if not isinstance(metadata, Mapping):
            raise ValueError('the row has no "metadata", which entries of reasoning-gym have')
        return Problem(0, question, reference, metadata)
    known: dict[str, Any] = {"question": question}
    if answer_column in row:
        known["answer"] = row[answer_column]
    return Problem(0, question, reference, {**row, **known})


def _problem_of_source(row: Mapping[str, Any], settings: TaskSettings) -> Problem:
    """The problem of a row of one of several sources."""
    sources, label = dict(zip(settings.labels(), settings.sources, strict=True)), row.get("source")
    if not isinstance(label, str) or label not in sources:
        raise ValueError(f'the row\'s "source" is {label!r:.100}, expected one of {", ".join(sources)}')
    return replace(problem_of(row, settings.of_source(sources[label])), source=label)


def _text(row: Mapping[str, Any], column: str, otherwise: str, *, needed: bool) -> str:
    value = row.get(column, row.get(otherwise))
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is None and not needed:
        return ""
    raise ValueError(f"the row's {column!r} is {value!r:.100}, expected text")
