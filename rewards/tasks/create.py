"""From a task's settings to the task: its provider is named, and comes in through a door."""

from __future__ import annotations

from learner_jax.runtime import Door, DoorError, WeirError, raised
from rewards.contracts import Task, TaskError
from rewards.data import read_tools_file
from rewards.settings import TaskSettings
from rewards.tasks.framed import FramedTask
from rewards.tasks.mixture import MixtureTask

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
_OF_ROWS = (
    "validation_data",
    "heldout_data",
    "validation_options",
    "heldout_options",
    "columns",
    "id_column",
    "messages_column",
    "system_column",
    "tools_column",
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
    if settings.sources:
        return _mixed(settings, seed=seed, deadline_s=deadline_s, num_workers=num_workers)
    task = _of_provider(settings, seed=seed, deadline_s=deadline_s, num_workers=num_workers)
    if not (settings.system or settings.tools):
        return task
    try:
        tools = read_tools_file(settings.tools) if settings.tools else ()
    except BaseException:
        task.close()
        raise
    return FramedTask(task, template=settings.prompt_template, system=settings.system, tools=tools)


def _mixed(settings: TaskSettings, *, seed: int, deadline_s: float | None, num_workers: int | None) -> Task:
    """The sources as one task; each has its own splits, reward and processes."""
    made: dict[str, Task] = {}
    try:
        for label, source in zip(settings.labels(), settings.sources, strict=True):
            own = settings.of_source(source)
            try:
                task = create_task(own, seed=seed, deadline_s=deadline_s, num_workers=num_workers)
            except (TaskError, DoorError) as error:
                raise type(error)(f"source {label!r}: {error}") from error
            has_own_template = own.prompt_template != settings.prompt_template
            made[label] = FramedTask(task, template=own.prompt_template) if has_own_template else task
        weights = dict(zip(made, (source.weight for source in settings.sources), strict=True))
        return MixtureTask(made, weights)
    except BaseException:
        for task in made.values():
            task.close()
        raise


def _require_rows(settings: TaskSettings) -> None:
    """Raises `TaskError` where settings of rows are given to another of Weir's providers, which would not see them."""
    if settings.provider == "rows" or settings.provider not in TASK.built_in:
        return
    given = [name for name in _OF_ROWS if getattr(settings, name)]
    if settings.curriculum is not None and settings.curriculum.column:
        given.append("curriculum.column")
    if given:
        raise TaskError(f'task.{given[0]} is for rows, and task.provider is {settings.provider!r}: set it to "rows"')


def _of_provider(settings: TaskSettings, *, seed: int, deadline_s: float | None, num_workers: int | None) -> Task:
    _require_rows(settings)
    provider = TASK.open(settings.provider)
    try:
        task: Task = provider(
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
