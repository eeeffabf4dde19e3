"""`tools.score`: files of answers, scored in order, whatever is in them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.support.user_folder import working_in
from tools import score
from tools.scoring.lines import Line
from tools.scoring.scored import parse_line

LINES: list[tuple[bytes, str]] = [
    (b'{"row": {"answer": "4"}, "answer": "so \\\\boxed{4}", "label": true}', "correct"),
    (b'{"row": {"answer": 4, "x": NaN}, "answer": "5", "more": [1]}', "wrong"),
    (b'{"row": {"answer": "4"}, "answer": "\\ud800 4"}', "correct"),
    (b'{"row": {"answer": "4"}, "answer": "\x00 4"}', "correct"),
    (b'{"row": {"answer": "4"}, "answer": "\xed\xa0\x80\\n4"}', "correct"),
    (b'{"row": {"answer": "4"}, "answer": ""}', "unparseable"),
    (b'{"row": {"answer": "4", "label": 0}, "answer": "5"}', "wrong"),
    (b'{"row": {"answer": "4"}, "answer": "4", "label": "false"}', "correct"),
    (b'{"row": {}, "answer": "4"}', "refused"),
    (b'{"row": {"answer": null}, "answer": "4", "label": "yes"}', "refused"),
    (b'{"row": {"answer": "4"}}', "error"),
    (b'{"row": [], "answer": "4"}', "error"),
    (b'{"row": {"answer": "4"}, "answer": 4}', "error"),
    (b"not json", "error"),
    (b"[1]", "error"),
    (b"\xff\xfe\x00", "error"),
    (b"[" * 100_000, "error"),
    (b'{"row": {"answer": "4"}, "answer": "' + b"x " * 500_000 + b'4"}', "correct"),
]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsysbinary: Any) -> Iterator[Callable[..., tuple[int, Any]]]:
    """Runs the command in the test's folder; gives its exit status and what it wrote."""

    def command(arguments: str, stdin: bytes | None = None) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", ["score", *arguments.split()])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            score.main()
        except SystemExit as ended:
            return int(ended.code or 0), capsysbinary.readouterr()
        return 0, capsysbinary.readouterr()

    monkeypatch.setenv("COLUMNS", "200")
    with working_in(tmp_path):
        yield command


def records(payload: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in payload.splitlines()]


def test_every_line_has_its_verdict_in_its_place(run: Callable[..., Any], tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + b"\r\n\r\n".join(line for line, _ in LINES)
    (tmp_path / "in.jsonl").write_bytes(content)
    status, written = run("--verifier math --answers in.jsonl --out out.jsonl --processes 2")
    assert (status, written.err) == (0, b"")
    found = records((tmp_path / "out.jsonl").read_bytes())
    assert [record["verdict"] for record in found] == [verdict for _, verdict in LINES]
    assert [record["line"] for record in found] == list(range(1, 2 * len(LINES), 2))
    for record in found:
        assert set(record) == {"line", "score", "verdict", "parts", "reasons", "seconds"}
        assert (record["score"] is None) == (record["verdict"] in ("error", "refused"))
    table = written.out.decode()
    assert "66.67% of 3 labels agree" in table
    assert "7 lines are no JSON object" in table
    assert "1 labels are neither true nor false" in table
    assert not list(tmp_path.glob("*.part"))


def test_standard_input_and_output(run: Callable[..., Any]) -> None:
    status, written = run("--verifier exact --answers - --out -", b'{"row": {"answer": "a"}, "answer": "a"}\n' * 70)
    assert status == 0
    assert [record["score"] for record in records(written.out)] == [1.0] * 70
    assert b"70 answers" in written.err


def test_json_instead_of_tables_and_a_status_for_lines_without_score(run: Callable[..., Any]) -> None:
    lines = b'{"row": {"answer": "a"}, "answer": "a", "label": 1}\n'
    lines += b'{"row": {"answer": "a"}, "answer": "b", "label": 1}\n{}\n'
    status, written = run("--verifier exact --answers - --json --strict --processes 1", lines)
    found = json.loads(written.out)
    assert status == 3
    assert (found["lines"], found["bad_lines"], found["verdicts"]) == (3, 1, {"pass": 1, "fail": 1, "error": 1})
    assert found["labels"]["agreement"] == 0.5
    assert (found["labels"]["false_fail"], found["labels"]["first_disagreeing_lines"]) == (1, [2])


def test_text_of_an_answer_can_not_steer_the_terminal(run: Callable[..., Any]) -> None:
    line = json.dumps({"row": {"answer": "a"}, "answer": "\x1b[31m\u202e\n"}).encode()
    _, written = run("--verifier exact --answers - --processes 1", line)
    assert b"\x1b" not in written.out
    row = {"instruction_id_list": ["\x1b[31mx"]}
    _, written = run(
        "--verifier instructions --answers - --processes 1", json.dumps({"row": row, "answer": "x"}).encode()
    )
    assert b"\x1b" not in written.out


OWN = """
import os, sys, time

class Hangs:
    def judge(self, answer, row):
        if answer == "hang":
            time.sleep(60)
        if answer == "die":
            os._exit(3)
        if answer == "raise":
            raise KeyError("x")
        if answer == "print":
            print("y" * 10_000_000)
        from rewards.contracts import scored
        return scored(1.0, {})
    def refusal(self, row):
        return ""
    def close(self):
        pass

def create(*, deadline_s, num_workers):
    return Hangs()

def broken(*, deadline_s, num_workers):
    raise RuntimeError("no licence")

def exact(prompt, answer, row):
    print("z" * 1_000_000)
    return {"right": float(answer == row["answer"]), "asked": float(prompt == "q")}
"""


def test_a_judge_that_hangs_or_dies_costs_one_line(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.scoring.processes._GRACE_S", 0.5)
    (tmp_path / "own_verifier.py").write_text(OWN)
    answers = ["a", "hang", "b", "die", "c", "raise", "d"]
    lines = "\n".join(json.dumps({"row": {}, "answer": answer, "label": 1}) for answer in answers).encode()
    status, written = run("--verifier own_verifier:create --answers - --out - --timeout 1.5 --processes 1", lines)
    verdicts = [record["verdict"] for record in records(written.out)]
    assert (status, verdicts) == (0, ["pass", "timeout", "pass", "crashed", "pass", "error", "pass"])
    status, written = run("--verifier own_verifier:broken --answers - --processes 1", lines)
    assert status == 78
    assert b"error: " in written.err
    assert b"no licence" in written.err


def test_the_reward_of_a_run(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "own_reward.py").write_text(OWN)
    (tmp_path / "prompts.jsonl").write_text('{"q": "q", "answer": "4"}\n' * 3)
    changes = "task.provider=rows task.data=prompts.jsonl task.reward=own_reward:exact task.question_column=q"
    settings = " ".join(f"--set {change} " for change in changes.split())
    lines = b'{"row": {"q": "q", "answer": "4"}, "answer": "4"}\n{"row": {"q": "x", "answer": "4"}, "answer": "5"}\n'
    config = REPOSITORY / "configs" / "demo.toml"
    status, written = run(
        f"--config {config} {settings} --set task.options={{}} --answers - --out - --processes 1", lines
    )
    found = records(written.out)
    assert status == 0, written.err
    assert [(record["score"], record["parts"]) for record in found] == [
        (2.0, {"right": 1.0, "asked": 1.0}),
        (0.0, {"right": 0.0, "asked": 0.0}),
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("--answers a.jsonl", 2, "expected one of --config and --verifier"),
        ("--answers a.jsonl --verifier math --config demo", 2, "expected one of"),
        ("--answers a.jsonl --verifier math --set a.b=1", 2, "--set needs --config"),
        ("--answers a.jsonl --verifier mth", 78, "did you mean math? known: choice"),
        ("--answers none.jsonl --verifier math", 78, "--answers none.jsonl can't be read: No such file"),
        ("--answers . --verifier math", 78, "Is a directory"),
        ("--answers utf16.jsonl --verifier math", 78, "is UTF-16, expected lines of JSON in UTF-8"),
        ("--answers a.jsonl --verifier math --out a.jsonl", 78, "is the input itself"),
        ("--answers a.jsonl --verifier math --out no/such", 78, "can't be written"),
        ("--answers a.jsonl --verifier math --out .", 78, "Is a directory"),
        ("--answers a.jsonl --verifier math --processes 0", 2, "from 1 to 1024"),
        ("--answers a.jsonl --verifier math --timeout nan", 2, "above 0"),
    ],
)
def test_what_can_not_work_is_one_clear_line(
    run: Callable[..., Any], tmp_path: Path, arguments: str, status: int, said: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"row": {"answer": "4"}, "answer": "4"}')
    (tmp_path / "utf16.jsonl").write_text('{"row": {}}', encoding="utf-16")
    found, written = run(arguments)
    assert (found, written.out) == (status, b"")
    assert said in written.err.decode()
    assert (tmp_path / "a.jsonl").read_text().startswith("{")


def test_it_needs_no_jax() -> None:
    code = "import sys, tools.score; print([name for name in ('jax', 'torch', 'vllm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"row": null, "answer": "4"}', '"row" is null, expected an object'),
        ('{"answer": "4"}', '"row" is missing, expected an object'),
        ('{"row": {}, "answer": 4.0}', '"answer" is a number, expected text'),
        ('{"row": {}, "answer": true}', '"answer" is true, expected text'),
        ('{"row": {}, "answer": [1]}', '"answer" is a list, expected text'),
        ('{"row": {}, "answer": {}}', '"answer" is an object, expected text'),
        ('"4"', "the line is text, expected an object"),
    ],
)
def test_what_is_no_line_of_answers_is_told_in_terms_of_json(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        parse_line(Line(1, line.encode()))


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, True), (0, False), (1.0, True), (" False ", False), ("1", True), (None, None)]
    + [(value, "unread") for value in (0.5, 2, "yes", "", [], {})],
)
def test_a_label_is_right_wrong_none_or_left_out(value: Any, label: Any) -> None:
    line = json.dumps({"row": {}, "answer": "4", "label": value}).encode()
    assert parse_line(Line(1, line))[2] == label
    assert type(parse_line(Line(1, line))[2]) is type(label)
