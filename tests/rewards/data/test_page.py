"""docs/extend/data.md: every configuration that it shows makes a task with the files that it shows."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rewards.contracts import Problem, RewardRequest
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from tests.support.extend_pages import files_of
from tests.support.user_folder import working_in

FILES = files_of("data")
CONFIGS = sorted(name for name in FILES if name.endswith(".toml"))


@cache
def problems_of(name: str) -> list[Problem]:
    """The first problems of a configuration, whose own answers are right."""
    with TemporaryDirectory() as folder, working_in(Path(folder)):
        for file, text in FILES.items():
            Path(file).write_text(text)
        task = create_task(TaskSettings.model_validate(tomllib.loads(FILES[name])["task"]), seed=0)
        try:
            problems = [task.problem("train", index) for index in range(9)]
            for problem in problems:
                assert task.score(RewardRequest(problem, task.target(problem), "stop")).score == 1.0, problem
            return problems
        finally:
            task.close()


def test_the_page_has_configurations() -> None:
    assert {"config.toml", "function.toml", "dialogs.toml", "mixture.toml", "splits.toml", "curriculum.toml"} <= set(
        CONFIGS
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shown_configuration_makes_a_task_whose_own_answers_are_right(name: str) -> None:
    assert problems_of(name)


def test_what_the_page_says_of_them_holds() -> None:
    assert [problem.source for problem in problems_of("mixture.toml")[:8]].count("sums") == 2
    dialogs = problems_of("dialogs.toml")
    assert {problem.question for problem in dialogs} <= {"Capital of Italy?", "Which city is the capital?"}
    assert all(problem.prompt is not None for problem in dialogs)
    assert "What is 4 / 8?" not in {problem.question for problem in problems_of("splits.toml")}
    levels = [problem.metadata["level"] for problem in problems_of("curriculum.toml")]
    assert levels[0] == 1
    assert max(levels[1:3]) <= 2
