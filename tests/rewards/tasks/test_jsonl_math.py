"""Problems of mathematics from a file: answers compared as numbers, damaged files explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards.contracts.task import Problem, RewardRequest, Task, TaskError
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
    assert versions[0].split("@")[1] == versions[1].split("@")[1] == "final-answer-3"


# Files


def _task(path: Path, **options: str) -> JsonlMathTask:
    return JsonlMathTask(TaskSettings(provider="jsonl_math", path=str(path), options=options), seed=0)


def test_references_that_are_not_understood_are_named_by_line_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    answers = ["7", r"1, \ldots", r"\text{Bob}", "2 3", "x=5"]
    path.write_text("\n".join(json.dumps({"question": f"{index}?", "answer": a}) for index, a in enumerate(answers)))
    with pytest.raises(
        TaskError, match=r"(?s)2 of 5 reference answers .*unread_references.*line 2: .*line 4: '2 3': two"
    ):
        _task(path)
    task = _task(path, unread_references="skip")
    assert dict(task.reference_kinds) == {"number": 1, "text": 1, "equation or inequality": 1, "skipped": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "a\\ud800b", "answer": "1"}', r"line 1: 'question' holds half of a surrogate pair.*U\+D800"),
        (b'{"question": "a", "answer": "1\\u0000"}', r"line 1: 'answer' holds a control character, U\+0000"),
        (b'{"question": "a\\u001b[31m", "answer": "1"}', r"control character, U\+001B, at position 1"),
        (b'{"question": "a\\u009b", "answer": "1"}', r"control character, U\+009B"),
        (b'{"question": "a", "question": "b", "answer": "1"}', "line 1 is not JSON: the key 'question' stands twice"),
        (b'{"question": "a\xff", "answer": "1"}', "line 1 is not UTF-8: byte 15 is 0xff"),
        (b'\n{"question": "a", "answer": NaN}', "line 2 is not JSON: NaN is no JSON value"),
        (b'{"question": " \\t", "answer": "1"}', "line 1: 'question' is .*expected text"),
        (b'{"question": null, "answer": "1"}', "'question' is None"),
        (b'{"question": "a", "answer": ["1"]}', r"'answer' is \['1'\]"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b'{"question": "' + b"a" * 5_000_000 + b'", "answer": "1"}', "line 1 has 50000.. bytes"),
        (b'{"question": "' + b"a" * 300_000 + b'", "answer": "1"}', "'question' has 300000 characters"),
        (b"\xff\xfe{\x00", "is in UTF-16"),
    ],
)
def test_damaged_lines_are_refused_by_number(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=message):
        create_task(TaskSettings(provider="jsonl_math", path=str(path)), seed=0)


def test_byte_order_marks_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"question": "a\\r\\nb", "answer": "so\\r\\n#### 1,200"}\r\n\r\n'
        b'{"question": "c", "answer": "2"}\r\n'
    )
    task = _task(path)
    assert {task.problem("train", index).question for index in range(2)} <= {"a\nb", "c"}
    with pytest.raises(TaskError, match="not a file"):
        _task(tmp_path)
    with pytest.raises(TaskError, match="can't be read"):
        _task(Path("a\0b"))


def test_the_answers_of_a_task_are_judged_in_place(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(json.dumps({"question": "1?", "answer": r"2\sqrt{3}"}))
    task = _task(path)
    problem = Problem(1, "1?", r"2\sqrt{3}", {})
    right = task.score(RewardRequest(problem, r"so \boxed{\sqrt{12}}", "stop"))
    assert (right.verdict, right.parts) == ("pass", {"correct": 1.0, "parsed": 1.0})
    wrong = task.score(RewardRequest(problem, "\\boxed{\x1b[31m}", "stop"))
    assert (wrong.verdict, wrong.parts) == ("fail", {"correct": 0.0, "parsed": 0.0})
    assert wrong.reasons[0].isprintable()
    unknown = task.score(RewardRequest(Problem(1, "1?", r"\ldots", {}), "1", "stop"))
    assert (unknown.verdict, unknown.score) == ("refused", None)


def test_all_of_gsm8k_is_read_and_passes_itself(shared_data: Path) -> None:
    task = _task(shared_data / "gsm8k" / "train.jsonl")
    assert dict(task.reference_kinds) == {"number": 7473}
    size = task.num_distinct("train")
    assert size is not None
    for problem in (task.problem("train", index) for index in range(0, size, 5)):
        assert task.score(RewardRequest(problem, task.target(problem), "stop")).verdict == "pass"
