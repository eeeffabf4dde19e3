"""The command on an endpoint: results, resumption, the same bytes twice, and what the figures mean."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from learner_jax.runtime import patterns
from tests.support.openai_endpoint import Endpoint, adds, chat_answer, openai_endpoint
from tools import evaluate
from tools.evaluation.answers import AnswerLog
from tools.evaluation.asking import Answer
from tools.evaluation.errors import ResultError

ROWS = [{"id": f"p{i}", "question": f"What is {i}+{i}?", "answer": str(2 * i), "doc": f"d{i // 2}"} for i in range(8)]
SUITE: dict[str, Any] = {
    "name": "sums",
    "source": "jsonl",
    "path": "rows.jsonl",
    "columns": {"id": "id", "cluster": "doc"},
    "score": {"reward": "exact"},
}
SAMPLED = SUITE | {"samples": 4, "ks": [1, 4], "sampling": {"temperature": 1.0}, "format": r"^\d+$"}
KEY = "sk-very-secret-0123"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with openai_endpoint() as found:
        yield found


class Evaluator:
    """Calls the command in a folder with a suite."""

    def __init__(self, folder: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.endpoint, self._capsys = folder, endpoint, capsys
        self.write(SUITE)

    def write(self, suite: dict[str, Any], rows: Any = ROWS, name: str = "suite") -> Path:
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.folder / f"{name}.toml").write_text(tomli_w.dumps(suite))
        return self.folder / f"{name}.toml"

    def __call__(self, *more: str, out: str = "out", status: int = 0) -> str:
        given = ["--suite", str(self.folder / "suite.toml"), "--out", str(self.folder / out)]
        given += ["--endpoint", self.endpoint.url, "--endpoint-model", "adder", *more]
        patch = pytest.MonkeyPatch()
        with patch.context() as context:
            context.setattr(sys, "argv", ["evaluate", *given])
            context.setenv("COLUMNS", "200")
            with pytest.raises(SystemExit) if status else nullcontext() as ended:
                evaluate.main()
        said = self._capsys.readouterr()
        assert ended is None or ended.value.code == status, said.err
        return said.err if status else said.out

    def results(self, out: str = "out") -> dict[str, Any]:
        return json.loads((self.folder / out / "results.json").read_text())

    def files(self, out: str = "out") -> list[bytes]:
        return [(self.folder / out / name).read_bytes() for name in ("results.json", "scored.jsonl")]


@pytest.fixture
def run(tmp_path: Path, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> Iterator[Evaluator]:
    yield Evaluator(tmp_path, endpoint, capsys)
    os.umask(0o022)


def test_a_suite_is_asked_scored_and_told(run: Evaluator) -> None:
    run.endpoint.answer = lambda body: "7" if "7+7" in str(body) else adds(body)
    told = run()
    (suite,) = run.results()["suites"]
    assert suite["metrics"]["pass@1"] | {"low": 0, "high": 0} == {
        "unit": "share", "value": 0.875, "low": 0, "high": 0, "num_problems": 8, "num_clusters": 4,
    }  # fmt: skip
    assert suite["problems"][7]["scores"] == [0.0]
    assert suite["metrics"]["tokens"]["value"] == 3.0
    assert "87.5%" in told
    assert "8 in 4 clusters" in told
    assert "note: 4 problems or clusters are few" in told


def test_estimators_are_over_the_samples_of_each_problem(run: Evaluator) -> None:
    """Half of the seeds are odd, and give a sum that is one too many: pass@4 and maj@4 follow from the counts."""
    run.write(SAMPLED)
    run()
    (suite,) = run.results()["suites"]
    passes = [sum(score == 1.0 for score in problem["scores"]) for problem in suite["problems"]]
    assert set(passes) - {0, 4}, passes
    metrics = {name: metric["value"] for name, metric in suite["metrics"].items()}
    assert metrics["pass@1"] == pytest.approx(sum(passes) / 32)
    assert metrics["pass@4"] == pytest.approx(sum(count > 0 for count in passes) / 8)
    assert metrics["maj@4"] == pytest.approx(sum(1.0 if c > 2 else 0.5 if c == 2 else 0.0 for c in passes) / 8)
    assert metrics["format_errors"] == 0.0


def test_refusals_cuts_and_format_errors_are_counted(run: Evaluator) -> None:
    run.write(SAMPLED)
    odd = [
        chat_answer("I'm sorry, but no."),
        chat_answer("", finish="content_filter"),
        chat_answer("1", finish="length"),
    ]
    run.endpoint.script = [*odd, chat_answer("so 7")]
    run("--concurrency", "1")
    metrics = {name: m["value"] for name, m in run.results()["suites"][0]["metrics"].items()}
    assert metrics["refused"] == pytest.approx(2 / 32)
    assert metrics["truncated"] == pytest.approx(1 / 32)
    assert metrics["format_errors"] == pytest.approx(3 / 32)


def test_the_same_evaluation_twice_gives_the_same_files(run: Evaluator) -> None:
    run.write(SAMPLED)
    run()
    asked = len(run.endpoint.requests)
    before = run.files()
    run()
    assert run.files() == before
    assert len(run.endpoint.requests) == asked, "every answer is kept"
    run(out="elsewhere")
    assert run.files("elsewhere") == before, "also when all is asked anew, in another order"
    assert len(run.endpoint.requests) == 2 * asked


def test_an_evaluation_that_broke_off_goes_on(run: Evaluator) -> None:
    run.endpoint.script = [None] * 5 + [(400, {}, b"no")]
    told = run("--concurrency", "1", status=78)
    assert told.count("error: ") == 1
    assert "status 400: no" in told
    assert not (run.folder / "out" / "results.json").exists()
    lines = (run.folder / "out" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["problem"] for line in lines] == [f"p{i}" for i in range(5)]
    run()
    assert len(run.endpoint.requests) == 6 + 3
    run(out="whole")
    assert run.files() == run.files("whole")


def _without_times(lines: bytes) -> list[dict[str, Any]]:
    """Lines of answers in the order of their keys, without what differs from asking to asking."""
    found = [json.loads(line) for line in lines.splitlines()]
    return sorted(({k: v for k, v in one.items() if k != "measured"} for one in found), key=lambda one: one["key"])


def test_a_torn_last_line_is_asked_again(run: Evaluator) -> None:
    run()
    before, path = run.files(), run.folder / "out" / "answers.jsonl"
    payload = path.read_bytes()
    path.write_bytes(payload[:-9])
    run()
    assert len(run.endpoint.requests) == 9
    assert run.files() == before
    assert _without_times(path.read_bytes()) == _without_times(payload)


def test_a_damaged_line_before_the_last_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path)
    log.add("a", Answer("x", "stop", 1))
    log.close()
    path.write_bytes(b'{"key": "torn\n' + path.read_bytes())
    with pytest.raises(ResultError, match=r"answers\.jsonl, line 1 is no answer"):
        AnswerLog(path)


def test_another_prompt_model_or_sampling_is_asked_anew(run: Evaluator) -> None:
    run()
    run.write(SUITE | {"prompt_template": "{question} Tell."})
    run()
    assert len(run.endpoint.requests) == 16
    run.write(SUITE | {"sampling": {"max_tokens": 7}})
    run()
    assert len(run.endpoint.requests) == 24
    run("--endpoint-model", "other")
    assert len(run.endpoint.requests) == 32
    run.write(SUITE)
    run()
    assert len(run.endpoint.requests) == 32, "the first ones are still kept"


def test_another_scorer_scores_the_kept_answers(run: Evaluator) -> None:
    run.endpoint.answer = lambda body: f"#### {adds(body)}"
    run()
    assert run.results()["suites"][0]["metrics"]["pass@1"]["value"] == 0.0
    run.write(SUITE | {"score": {"reward": "math"}})
    run()
    assert run.results()["suites"][0]["metrics"]["pass@1"]["value"] == 1.0
    assert len(run.endpoint.requests) == 8


def test_several_suites_are_one_result(run: Evaluator) -> None:
    second = run.write(SUITE | {"name": "second", "limit": 2}, name="second")
    run("--suite", str(second))
    assert [(suite["name"], suite["num_problems"]) for suite in run.results()["suites"]] == [("sums", 8), ("second", 2)]
    assert "two suites have the name 'sums'" in run("--suite", str(run.folder / "suite.toml"), status=78)


def test_a_dialog_goes_on_after_a_wrong_answer(run: Evaluator) -> None:
    """Right at the second turn: worth the discount."""
    run.endpoint.answer = lambda body: adds(body) if len(body["messages"]) == 1 else "5"
    task = {
        "provider": "rows",
        "data": "rows.jsonl",
        "reward": "exact",
        "turns": 2,
        "turn_discount": 0.5,
        "holdout_percent": 45,
    }
    run.write(
        {"name": "again", "source": "task", "limit": 2, "split": "train", "task": task},
        [{"question": f"What is {i}+{i}? ", "answer": "5"} for i in range(20)],
    )
    run()
    (suite,) = run.results()["suites"]
    assert [problem["scores"] for problem in suite["problems"]] == [[0.5], [0.5]]
    bodies = [body["messages"] for _, _, body in run.endpoint.requests]
    assert sorted(map(len, bodies)) == [1, 1, 3, 3]
    assert max(bodies, key=len)[-1] == {"role": "user", "content": "That is not right. Try again."}


def test_the_key_is_sent_and_stored_nowhere(run: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADDER_KEY", KEY)
    run.endpoint.answer = lambda body: f"{adds(body)} "
    told = run("--api-key-env", "ADDER_KEY")
    assert run.endpoint.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    kept = b"".join(path.read_bytes() for path in (run.folder / "out").rglob("*") if path.is_file())
    assert KEY not in told
    assert KEY.encode() not in kept
    assert (run.folder / "out" / "answers.jsonl").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("more", "status", "expected"),
    [
        (["--api-key-env", "NOT_SET_ANYWHERE"], 78, "the environment variable NOT_SET_ANYWHERE is not set"),
        (["--model", "x"], 2, "expected one of --model"),
        (["--version", "3"], 2, "--version is for --weights"),
        (["--concurrency", "0"], 2, "expected a whole number from 1 on"),
        (["--base", "s3://bucket/x"], 2, "expected a folder of this machine, got 's3://bucket/x'"),
        (["--suite", "missing.toml"], 78, "suite missing.toml does not exist"),
        (["--set", "serving.threads=2"], 2, "--set needs --config"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_asked(
    run: Evaluator, more: list[str], status: int, expected: str
) -> None:
    assert expected in run(*more, status=status)
    assert not run.endpoint.requests


def test_a_refused_key_is_one_line(run: Evaluator) -> None:
    run.endpoint.script = [(401, {}, {"error": {"message": "bad key"}})] * 64
    told = run(status=78)
    assert told.count("error: ") == 1
    assert "no key was sent" in told


def test_answers_that_nobody_could_judge_are_told_and_not_counted(
    run: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.folder / "own_judge.py").write_text(
        "def picky(prompt, answer, row):\n    if answer == '6':\n        raise ValueError('no six')\n    return 1.0\n"
    )
    monkeypatch.chdir(run.folder)
    monkeypatch.syspath_prepend(str(run.folder))
    run.write(SUITE | {"score": {"reward": "own_judge:picky", "confined": False}})
    told = run()
    (suite,) = run.results()["suites"]
    assert (suite["metrics"]["pass@1"]["value"], suite["metrics"]["pass@1"]["num_problems"]) == (1.0, 7)
    assert "1 of 8 answers have no verdict" in told
    assert "no six" in told


def test_hostile_answers_do_not_reach_the_terminal_raw(run: Evaluator) -> None:
    run.endpoint.answer = lambda _: "\x1b[31m\u202e<script>"
    assert "\x1b[31m" not in run()
    assert "\x1b" not in (run.folder / "out" / "scored.jsonl").read_text()


@pytest.mark.parametrize("key", ["format", "vote", "refusals"])
def test_a_pattern_that_never_ends_is_a_verdict_and_not_a_hang(
    run: Evaluator, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """(a|aa)+$ tries all ways to cut a run of a: more than there are atoms, on this answer."""
    endless = r"(a|aa)+$"
    monkeypatch.setattr(patterns, "SEARCH_S", 0.1)
    run.endpoint.answer = lambda body: "a" * 400 + "b" if "5+5" in str(body) else adds(body)
    run.write(SUITE | {key: [endless] if key == "refusals" else endless})
    told = run()
    (suite,) = run.results()["suites"]
    assert suite["problems"][5]["verdicts"] == ["timeout"]
    assert suite["problems"][5]["scores"] == [None]
    assert suite["metrics"]["pass@1"]["num_problems"] == 7
    assert "1 of 8 answers have no verdict" in told
    assert "(a|aa)+$" in told
