"""From a task's settings to the task: one row per provider."""

from __future__ import annotations

from rewards.contracts import Task, TaskError
from rewards.settings import TaskSettings


def create_task(settings: TaskSettings, *, seed: int, deadline_s: float = 5.0, num_workers: int = 2) -> Task:
    """The task that the settings name. Importing a provider's library may take seconds.

    Args:
      seed: chooses and orders the problems; which split a text is in doesn't depend on it.
      deadline_s: longest time for scoring one answer, for verifiers that run in processes of their own.
      num_workers: number of those processes.

    Raises:
      TaskError: the provider refuses the settings.
    """
    match settings.provider:
        case "reasoning_gym":
            from rewards.tasks.reasoning_gym_task import ReasoningGymTask

            return ReasoningGymTask(settings, seed=seed, deadline_s=deadline_s, num_workers=num_workers)
        case "keyword_story":
            from rewards.tasks.keyword_story import KeywordStoryTask

            return KeywordStoryTask(settings, seed=seed)
        case "jsonl_math":
            from rewards.tasks.jsonl_math import JsonlMathTask

            return JsonlMathTask(settings, seed=seed)
    raise TaskError(f"task.provider {settings.provider!r}: expected reasoning_gym, keyword_story or jsonl_math")
