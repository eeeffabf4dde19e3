"""Suites as files: what is read, and the one clear error for what is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import tomli_w
from pyarrow import parquet

from rewards.contracts import RewardRequest
from tests.conftest import REPOSITORY
from tests.support.user_folder import working_in
from tools.evaluation import OpenSuite, SuiteError, load_suite, open_suite
from tools.evaluation.suites import Columns, Sampling, Scorer, SuiteSettings

ROWS = [
    {"id": "a", "question": "1+1?", "answer": "2", "doc": "x"},
    {"id": "b", "question": "2+2?", "answer": "4", "doc": "x"},
    {"id": "c", "question": "3+3?", "answer": "6", "doc": "y"},
]
PLAIN: dict[str, Any] = {
    "name": "sums",
    "source": "jsonl",
    "path": "rows.jsonl",
    "columns": {"id": "id", "cluster": "doc"},
    "score": {"reward": "exact"},
}
TASK = {
    "name": "gym",
    "source": "task",
    "limit": 5,
    "task": {"provider": "reasoning_gym", "name": "chain_sum", "num_problems": 500},
}
Opened = Callable[..., OpenSuite]


def write(folder: Path, tree: dict[str, Any], rows: Any = ROWS) -> Path:
    payload = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "rows.jsonl").write_bytes(payload)
    (folder / "suite.toml").write_text(tomli_w.dumps(tree))
    return folder / "suite.toml"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made: list[OpenSuite] = []

    def open_(tree: dict[str, Any], rows: Any = ROWS) -> OpenSuite:
        made.append(open_suite(load_suite(write(tmp_path, tree, rows))))
        return made[-1]

    yield open_
    for suite in made:
        suite.close()


def score(suite: OpenSuite, number: int, answer: str) -> float | None:
    return suite.task.score(RewardRequest(suite.problems[number].problem, answer, "stop")).score


def test_rows_of_a_file_become_problems_that_are_scored(opened: Opened) -> None:
    suite = opened(PLAIN)
    assert [(one.id, one.cluster, one.question) for one in suite.problems] == [
        ("a", "x", "1+1?"),
        ("b", "x", "2+2?"),
        ("c", "y", "3+3?"),
    ]
    assert [score(suite, 1, answer) for answer in ("4", " 4\n", "4.", "5", "")] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert suite.environment is None


def test_columns_limit_and_prompt_are_those_of_the_suite(opened: Opened) -> None:
    rows = [{"q": "1+1?", "a": 2, "n": 7}, {"q": "2+2?", "a": "4", "n": 8}]
    tree = PLAIN | {
        "columns": {"id": "n", "question": "q", "answer": "a"},
        "limit": 1,
        "prompt_template": "Q: {question}",
    }
    suite = opened(tree, rows)
    assert [(one.id, one.problem.answer, suite.prompt(one)) for one in suite.problems] == [("7", "2", "Q: 1+1?")]


def test_the_math_verifier_scores_rows(opened: Opened) -> None:
    suite = opened(PLAIN | {"score": {"reward": "math"}})
    assert [score(suite, 2, answer) for answer in ("It is #### 6", "6.0", "5")] == [1.0, 1.0, 0.0]


def test_a_function_of_the_users_own_scores_rows(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "own_scores.py").write_text(
        "def half(prompt, answer, row):\n    return 0.5 if row['doc'] == 'x' else 0\n"
    )
    with working_in(tmp_path):
        suite = opened(PLAIN | {"score": {"reward": "own_scores:half", "confined": False}})
        assert [score(suite, number, "") for number in (0, 2)] == [0.5, 0.0]


def test_a_task_of_weir_is_a_suite(opened: Opened) -> None:
    suite = opened(TASK)
    assert [one.id for one in suite.problems] == list("01234")
    assert score(suite, 0, suite.problems[0].problem.answer) == 1.0


def test_a_dialog_is_a_suite(opened: Opened) -> None:
    suite = opened(TASK | {"task": {**TASK["task"], "turns": 3}})  # type: ignore[dict-item]
    assert suite.environment is not None
    assert suite.environment.max_turns == 3


def test_parquet_is_read_as_json_lines_are(opened: Opened, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    found = opened(PLAIN | {"source": "parquet", "path": "rows.parquet"})
    assert found.problems == opened(PLAIN).problems == opened(PLAIN | {"source": "rows"}).problems
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(SuiteError, match=r"rows\.parquet is no parquet file"):
        opened(PLAIN | {"source": "parquet", "path": "rows.parquet"})


def test_without_pyarrow_parquet_is_refused(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SuiteError, match=r"needs pyarrow: pip install 'weir\[parquet\]'"):
        opened(PLAIN | {"source": "parquet", "path": "rows.parquet"})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*ROWS, ROWS[0]], r"line 4: the id 'a' is that of .*rows\.jsonl, line 1, too; ids must be unique"),
        ([{"id": "a", "answer": "2", "doc": "x"}], r"line 1 has no 'question', only 'id', .* see columns\.question"),
        ([{"id": "a", "question": "1", "doc": "x"}], r"has no 'answer', .* see columns\.answer"),
        ([{"question": "1", "answer": "2", "doc": "x"}], r"has no 'id', .* see columns\.id"),
        ([ROWS[0] | {"question": " "}], "'question' is ' ', expected text"),
        ([ROWS[0] | {"question": ["x"]}], r"'question' is \['x'\], expected text"),
        ([ROWS[0] | {"question": "a\x1b[31m"}], r"'question' holds a control character, U\+001B"),
        ([], "holds no problems"),
        (b"\n \n", "holds no problems"),
        ('{"id": "a", "question": "é"}'.encode("latin-1"), r"line 1 is not UTF-8: byte \d+ is 0xe9"),
        (json.dumps(ROWS[0]).encode("utf-16"), "is in UTF-16, expected lines of UTF-8"),
        (b"[1]\n", "line 1 is a list, expected an object"),
        (b'{"id": 1\n', "line 1 is not JSON"),
        (b'{"id": 1, "id": 2}\n', "the key 'id' stands twice"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named(opened: Opened, rows: Any, expected: str) -> None:
    with pytest.raises(SuiteError, match=expected):
        opened(PLAIN, rows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nme": "x"}, "nme: unknown key"),
        ({"name": "a/b"}, "name: .* got 'a/b'"),
        ({"source": "csv"}, "source: Input should be 'rows', 'jsonl', 'parquet' or 'task', got 'csv'"),
        ({"path": ""}, "path names no file"),
        ({"path": "missing.jsonl"}, "missing.jsonl' can't be read: No such file"),
        ({"path": "."}, r"is a folder without state\.json"),
        ({"samples": "3"}, "samples: Input should be a valid integer, got '3'"),
        ({"samples": 0}, "samples: .*greater than or equal to 1, got 0"),
        ({"samples": 4}, "gives the same answer each time"),
        ({"ks": [2]}, r"ks holds 2, expected 1 to samples \(1\)"),
        ({"ks": []}, "ks: .*at least 1 item"),
        ({"prompt_template": "no"}, "expected {question} in it"),
        ({"format": "("}, "no regular expression"),
        ({"refusals": ["["]}, "no regular expression"),
        ({"columns": {"question": "q"}}, r"no 'q', only .* see columns\.question"),
        ({"columns": {"ident": "q"}}, r"columns\.ident: unknown key"),
        ({"score": {}}, "score.reward is empty"),
        ({"score": {"reward": "no_such"}}, "no_such"),
        ({"score": {"reward": "no_such_module:f"}}, "no_such_module"),
        ({"sampling": {"temperature": 0.001}}, "expected 0, or at least 0.01"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature"),
        ({"sampling": {"stop": [""]}}, "stop holds an empty text"),
        ({"split": "train"}, 'split is for source "task"'),
        ({"task": {"provider": "rows"}}, 'task is for source "task"'),
        ({"source": "task"}, r"there is no \[task\] table"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named(opened: Opened, changes: dict[str, Any], expected: str) -> None:
    from learner_jax.runtime import WeirError

    with pytest.raises(WeirError, match=expected):
        opened(PLAIN | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"path": "rows.jsonl"}, r"path is for files"),
        ({"limit": 0}, "makes problems without end; set limit"),
        ({"task": {"provider": "reasoning_gym", "name": "no_such_task"}}, "no_such_task"),
        ({"task": {**TASK["task"], "chat": True}}, "task.chat stands at the suite's top"),  # type: ignore[dict-item]
        ({"task": {"name": "x"}}, r"task\.provider: it is missing"),
    ],
)
def test_a_wrong_task_is_named(opened: Opened, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(SuiteError, match=expected):
        opened(TASK | changes)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [(b"name = ", "is not TOML"), (b'name = "\xff"', "not UTF-8"), (b"", "name: it is missing")],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path: Path, payload: bytes, expected: str) -> None:
    (tmp_path / "suite.toml").write_bytes(payload)
    with pytest.raises(SuiteError, match=expected):
        load_suite(tmp_path / "suite.toml")


def test_a_suite_that_is_not_there_names_those_that_come_with_weir(tmp_path: Path) -> None:
    with pytest.raises(
        SuiteError, match="does not exist; those that come with Weir are arithmetic, stories, word_problems"
    ):
        load_suite(tmp_path / "none.toml")


def test_questions_that_stand_twice_are_noted(opened: Opened) -> None:
    suite = opened(PLAIN, [*ROWS, ROWS[0] | {"id": "d"}])
    assert suite.notes == ("2 of 4 problems have a question that another one has, too",)


def test_the_hash_follows_what_is_asked_and_how(opened: Opened) -> None:
    same = opened(PLAIN).hash
    assert opened(PLAIN | {"description": "another"}).hash == same
    changed = [
        opened(PLAIN, [*ROWS[:2], ROWS[2] | {"answer": "7"}]).hash,
        opened(PLAIN | {"sampling": {"max_tokens": 7}}).hash,
        opened(PLAIN | {"prompt_template": "Q: {question}"}).hash,
        opened(PLAIN | {"score": {"reward": "math"}}).hash,
    ]
    assert len({same, *changed}) == 5


@pytest.mark.parametrize("name", [path.stem for path in (REPOSITORY / "configs" / "suites").glob("*.toml")])
def test_the_suites_that_come_with_weir_can_be_asked(name: str) -> None:
    suite = open_suite(load_suite(name))
    try:
        assert suite.name == name
        assert len(suite.problems) >= 15
        answer = suite.problems[0].problem.answer
        assert not answer or score(suite, 0, f"#### {answer}") == 1.0 or score(suite, 0, answer) == 1.0
    finally:
        suite.close()


def test_every_key_stands_in_the_documentation() -> None:
    text = (REPOSITORY / "docs" / "evaluation.md").read_text()
    tables = {"columns": Columns, "score": Scorer, "sampling": Sampling}
    keys = [name for name in SuiteSettings.model_fields if name not in tables]
    keys += [f"{table}.{name}" for table, model in tables.items() for name in model.model_fields]
    assert [key for key in keys if f"| `{key}` |" not in text] == []


@pytest.mark.parametrize("name", ["my_suite.toml", "gym.toml"])
def test_the_suites_of_the_documentation_are_taken(tmp_path: Path, name: str) -> None:
    text = (REPOSITORY / "docs" / "evaluation.md").read_text()
    (tmp_path / name).write_text(text.partition(f"```toml {name}\n")[2].partition("```")[0])
    (tmp_path / "capitals.jsonl").write_text(
        '{"id": "fr", "question": "Capital of France?", "answer": "Paris", "region": "Europe"}\n'
    )
    suite = open_suite(load_suite(tmp_path / name))
    suite.close()
    assert suite.problems
