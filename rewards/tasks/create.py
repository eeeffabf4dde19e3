"""From a task's settings to the task: its provider is named, and comes in through a door."""

from __future__ import annotations

from learner_jax.runtime import Door, DoorError, WeirError, raised
from rewards.contracts import Task
from rewards.settings import TaskSettings

TASK = Door(
    kind="task",
    setting="task.provider",
    built_in={
        "jsonl_math": "rewards.tasks.jsonl_math:JsonlMathTask",
        "keyword_story": "rewards.tasks.keyword_story:KeywordStoryTask",
        "reasoning_gym": "rewards.tasks.reasoning_gym_task:ReasoningGymTask",
        "rows": "rewards.tasks.rows:RowsTask",
    },
    positional=("settings",),
    keywords=("seed", "deadline_s", "num_workers"),
)
_PROTOCOL = ("version", "problem", "num_distinct", "target", "score", "close")


def create_task(
    settings: TaskSettings, *, seed: int, deadline_s: float | None = None, num_workers: int | None = None
) -> Task:
    """The task that the settings name. Importing a provider's library may take seconds.

    Args:
      seed: chooses and orders the problems; which split a text is in doesn't depend on it.
      deadline_s: longest time for scoring one answer, for verifiers that run in processes of their own; that of the
        settings if None.
      num_workers: number of those processes; that of the settings if None.

    Raises:
      DoorError: there is no such provider, or it is no task.
      TaskError: the provider refuses the settings.
    """
    provider = TASK.open(settings.provider)
    try:
        task = provider(
            settings,
            seed=seed,
            deadline_s=settings.score_timeout_s if deadline_s is None else deadline_s,
            num_workers=settings.score_processes if num_workers is None else num_workers,
        )
    except WeirError:
        raise
    except Exception as error:
        if settings.provider in TASK.built_in:
            raise
        raise DoorError(f"task.provider {settings.provider!r} made no task: {raised(error)}") from error
    if lacking := [name for name in _PROTOCOL if not hasattr(task, name)]:
        raise DoorError(
            f"task.provider {settings.provider!r} made a {type(task).__name__} without {', '.join(lacking)}; expected "
            f"what rewards.contracts.Task has"
        )
    return task
