"""Problems of mathematics from a file: answers compared as numbers, damaged files explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards.contracts.task import Problem, Task, TaskError
from rewards.settings.task import TaskSettings
from rewards.tasks.create import create_task
from rewards.tasks.jsonl_math import JsonlMathTask
from tests.support.tasks import answer, gsm8k, math_file

__all__ = ["gsm8k"]  # a fixture


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("#### 10", 1.0),
        ("so \\boxed{10}", 1.0),
        ("It costs $10.00", 1.0),
        ("#### 9", 0.0),
        ("\\boxed{9} \\boxed{10}", 0.0),
        ("-10", 0.0),
        ("10 #### 9", 0.0),
        ("\\boxed{9} #### 10", 1.0),
        ("", 0.0),
    ],
)
def test_answers_are_compared_as_numbers(gsm8k: Task, response: str, score: float) -> None:
    assert answer(gsm8k, Problem(0, "", "10", {}), response).score == score


def test_an_answer_that_never_evaluates_is_wrong_at_once(gsm8k: Task) -> None:
    result = answer(gsm8k, Problem(0, "", "10", {}), "9**9**9**9**9")
    assert (result.verdict, result.score, result.parts) == ("fail", 0.0, {"correct": 0.0, "parsed": 1.0})


def test_damaged_math_files_are_explained(tmp_path: Path) -> None:
    good = '{"question": "1+1?", "answer": "#### 2"}\n'
    cases = {
        "line 2 is not JSON": good + "{oops\n",
        "line 3 has no key 'answer', only 'question'": good + "\n" + '{"question": "?"}\n',
        "line 1: 'answer' is 7, expected text": '{"question": "?", "answer": 7}\n',
        "line 1 is a list, expected an object": "[1]\n",
        "nothing follows ####": '{"question": "?", "answer": "so ####"}\n',
        "holds no problem": "\n\n",
    }
    for message, content in cases.items():
        path = tmp_path / "file.jsonl"
        path.write_text(content)
        with pytest.raises(TaskError, match=message):
            create_task(math_file(path), seed=0)
    with pytest.raises(TaskError, match=r"missing\.jsonl' can't be read: No such file"):
        create_task(math_file(tmp_path / "missing.jsonl"), seed=0)
    with pytest.raises(TaskError, match=r"task\.path is empty"):
        create_task(TaskSettings(provider="jsonl_math"), seed=0)
    with pytest.raises(TaskError, match="question_ky"):
        create_task(math_file(tmp_path / "file.jsonl", question_ky="q"), seed=0)


def test_the_version_names_the_file_by_content(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    versions = []
    for value in (2, 3):
        path.write_text(json.dumps({"question": "1+1?", "answer": f"#### {value}"}) + "\n")
        task = JsonlMathTask(math_file(path), seed=0)
        versions.append(task.version)
        task.close()
    assert versions[0] != versions[1]
    assert versions[0].startswith("jsonl_math/file.jsonl:")
    assert versions[0].split("@")[1] == versions[1].split("@")[1] == "final-answer-2"
