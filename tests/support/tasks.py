"""Tasks of each provider as several tests use them, and how an answer to one is scored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts.task import Problem, RewardRequest, Task
from rewards.settings.task import TaskSettings
from rewards.tasks.create import create_task

TWO_NUMBERS = {
    "min_terms": 2,
    "max_terms": 2,
    "min_digits": 2,
    "max_digits": 2,
    "operators": ["+", "-"],
    "allow_parentheses": False,
}


def arithmetic(**settings: Any) -> TaskSettings:
    fields = {"provider": "reasoning_gym", "name": "basic_arithmetic", "options": TWO_NUMBERS, **settings}
    return TaskSettings.model_validate(fields)


def story(**options: Any) -> TaskSettings:
    return TaskSettings(provider="keyword_story", options=options)


def math_file(path: Path, **options: Any) -> TaskSettings:
    return TaskSettings(provider="jsonl_math", path=str(path), options=options)


def answer(task: Task, problem: Problem, response: str, finish_reason: str = "stop") -> Any:
    return task.score(RewardRequest(problem, response, finish_reason))


@pytest.fixture(scope="module")
def addition() -> Task:
    return create_task(arithmetic(), seed=3)


@pytest.fixture(scope="module")
def gsm8k(shared_data: Path) -> Iterator[Task]:
    task = create_task(math_file(shared_data / "gsm8k" / "train.jsonl"), seed=0, deadline_s=2)
    yield task
    task.close()


@pytest.fixture(scope="module")
def writer() -> Task:
    return create_task(story(), seed=0)
