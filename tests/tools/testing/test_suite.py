"""The page of what the tests cost and see: from what other programs wrote, whatever they wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.testing.suite import __main__ as command
from tools.testing.suite.page import page
from tools.testing.suite.results import ResultsError, read_run, read_tried

JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests">
<testsuite name="pytest" tests="6" time="200.5" timestamp="2026-11-29T17:18:44+00:00">
<testcase classname="" name="tests.rewards.test_broken" time="0.0"><error message="collection failure"/></testcase>
<testcase classname="tests.rewards.test_tasks" name="test_a[x|y`z]" time="1.5"/>
<testcase classname="tests.serving_bridge.queue.test_queue" name="test_b" time="120.0"><failure/></testcase>
<testcase classname="tests.serving_bridge.queue.test_queue" name="test_c" time="0.5"><skipped/></testcase>
<testcase classname="tests.serving_bridge.queue.test_model.TestMachine" name="runTest" time="78.0"/>
<testcase classname="tests.test_rooms" name="test_d" time="0.0"/>
</testsuite></testsuites>"""


def mutation(**changes: Any) -> str:
    told = {"path": "serving_bridge/queue/rows.py", "line": 7, "kind": "bound", "start": 1, "end": 2, "seconds": 3.5}
    return json.dumps(told | {"was": "a < b", "now": "(a <= b)", "noticed_by": "tests/t.py::test_x"} | changes)


@pytest.fixture
def junit(tmp_path: Path) -> Path:
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    return path


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    lines = text[text.index(f"## {heading}\n") :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| --- |"))
    table = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")])
    return table


def test_every_test_has_its_file_and_what_became_of_it(junit: Path) -> None:
    run = read_run(junit)
    assert [(test.path, test.name, test.status) for test in run.tests] == [
        ("tests/rewards/test_broken.py", "tests.rewards.test_broken", "failed"),
        ("tests/rewards/test_tasks.py", "test_a[x|y`z]", "passed"),
        ("tests/serving_bridge/queue/test_queue.py", "test_b", "failed"),
        ("tests/serving_bridge/queue/test_queue.py", "test_c", "skipped"),
        ("tests/serving_bridge/queue/test_model.py", "TestMachine.runTest", "passed"),
        ("tests/test_rooms.py", "test_d", "passed"),
    ]
    assert (run.started, run.seconds) == ("2026-11-29", 200.5)


def test_time_is_that_of_each_folder_and_of_the_slowest(junit: Path) -> None:
    text = page(read_run(junit), [], hardware="one | core", command="c", slowest=2)
    assert "| 6 | 3 | 1 | 2 | 3.3 min | 3.3 min |" in text
    assert "a run of 2026-11-29. Hardware: one \\| core" in text
    assert rows(text, "Time by folder") == [
        ["`tests/serving_bridge/queue`", "3", "3.3 min", "99.2%"],
        ["`tests/rewards`", "2", "1.5 s", "0.8%"],
        ["`tests`", "1", "0.0 s", "0.0%"],
    ]
    assert rows(text, "Slowest tests") == [
        ["`tests/serving_bridge/queue/test_queue.py::test_b`", "2.0 min"],
        ["`tests/serving_bridge/queue/test_model.py::TestMachine.runTest`", "1.3 min"],
    ]
    assert "None were tried" in text


def test_a_name_ends_neither_its_cell_nor_its_code(junit: Path) -> None:
    text = page(read_run(junit), [], hardware="h", command="c", slowest=9)
    assert ["`tests/rewards/test_tasks.py::test_a[x/y'z]`", "1.5 s"] in rows(text, "Slowest tests")


def test_mutations_are_counted_by_room_and_those_not_noticed_are_named(junit: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    other = {"path": "learner_jax/loop/saving.py", "line": 9, "kind": "order of effects"}
    first.write_text(
        "\n".join([mutation(), mutation(line=8, noticed_by=None), mutation(**other, was="f()\n g()", noticed_by=None)])
    )
    second.write_text(mutation(line=8))  # a test was added since
    tried = read_tried([first, second])
    text = page(read_run(junit), tried, hardware="h", command="c", slowest=1)
    assert rows(text, "Mutations noticed") == [
        ["`learner_jax.loop`", "1", "0", "0%"],
        ["`serving_bridge.queue`", "2", "2", "100%"],
        ["all", "3", "2", "67%"],
    ]
    assert "| `learner_jax/loop/saving.py:9` | order of effects | `f() g()` to `(a <= b)` |" in text
    assert "rows.py:8" not in text
    assert "Every one was noticed." in page(read_run(junit), tried[:1], hardware="h", command="c", slowest=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just text\n", "is no XML: .*; make one with: python -m pytest --junitxml"),
        (b"<testsuites/>", "holds no results of tests"),
        (b'<testsuite time="1"><testcase name="a" time="soon"/></testsuite>', "is no JUnit XML of pytest"),
        (bytes(range(256)), "is no XML"),
    ],
)
def test_what_is_no_run_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.xml"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=message):
        read_run(path)


@pytest.mark.parametrize("line", ["{}", "[]", "\x00", '{"path": 5}', mutation(line="7")])
def test_what_is_no_mutation_is_refused_by_its_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(f"{mutation()}\n{line}\n")
    with pytest.raises(ResultsError, match="line 2, is no mutation: .*; make the file with: python -m tools"):
        read_tried([path])


def test_the_command_writes_the_page_and_says_so(
    junit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tried, out = tmp_path / "tried.jsonl", tmp_path / "page.md"
    tried.write_text(f"{mutation()}\n{mutation(line=8, noticed_by=None)}\n")
    given = ["suite", str(junit), "--mutations", str(tried), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    assert command.main() == 0
    assert "6 tests and 1 of 2 mutations noticed" in capsys.readouterr().out
    text = out.read_text()
    assert "Made by `python -m tools.testing.suite JUNIT --mutations FILE` from a run of 2026-11-29." in text
    assert "cores; Python 3." in text
    monkeypatch.setattr(sys, "argv", [*given[:-1], str(junit / "below")])
    with pytest.raises(SystemExit):
        command.main()
    assert "can't be written" in capsys.readouterr().err
