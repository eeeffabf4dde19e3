"""A task whose rewards come later: answers in training get none yet, and wait."""

from __future__ import annotations

from collections.abc import Mapping

from rewards.contracts import Problem, RewardRequest, RewardResult, Split, Task
from rewards.settings import DelayedSettings, TaskSettings


class DelayedTask:
    """The task that episodes are played with; implements `rewards.contracts.Task`.

    Args:
      task: judges answers at once, where somebody asks it himself, as held-out evaluation does.
      delayed: labels of the sources whose rewards come later; "" of a task with one source.
    """

    def __init__(self, task: Task, delayed: Mapping[str, DelayedSettings]) -> None:
        self._task, self._delayed = task, delayed

    @property
    def version(self) -> str:
        return f"{self._task.version}+delayed"

    def problem(self, split: Split, index: int) -> Problem:
        return self._task.problem(split, index)

    def num_distinct(self, split: Split) -> int | None:
        return self._task.num_distinct(split)

    def target(self, problem: Problem) -> str:
        return self._task.target(problem)

    def score(self, request: RewardRequest) -> RewardResult:
        """No score yet ("pending") where the reward of the problem comes later; else the task's."""
        if request.problem.source in self._delayed:
            return RewardResult(None, {}, "pending")
        return self._task.score(request)

    def close(self) -> None:
        self._task.close()


def delayed_sources(settings: TaskSettings) -> dict[str, DelayedSettings]:
    """The sources whose rewards come later, by label; "" stands for a task with one source."""
    tables = dict(zip(settings.labels(), settings.sources, strict=True)) if settings.sources else {"": settings}
    return {label: table.delayed for label, table in tables.items() if table.delayed is not None}


def played_task(task: Task, settings: TaskSettings) -> Task:
    """The task as episodes see it."""
    delayed = delayed_sources(settings)
    return DelayedTask(task, delayed) if delayed else task
