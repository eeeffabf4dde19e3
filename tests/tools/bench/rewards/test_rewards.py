"""The benchmark of verifiers: both sides judge the same, and a disagreement ends it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from rewards.code.sandbox import missing
from tools.bench.__main__ import main
from tools.bench.rewards import code, mathematics
from tools.bench.rewards.code import answers

SHORT = ["rewards", "--kind", "code", "--answers", "4", "--rounds", "2"]


@pytest.fixture(scope="module")
def sandbox() -> None:
    if why := missing():
        pytest.skip(f"no sandbox on this machine: {why}")


@pytest.mark.usefixtures("sandbox")
def test_it_runs_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rewards.json"
    assert main([*SHORT, "--json", str(out)]) == 0
    assert "30 answers/s on two cores is the aim" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["settings"] == {"kind": "code", "answers": 4, "rounds": 2, "workers": 2, "sandbox": "bubblewrap"}
    assert record["results"]["sandbox"]["median"] > 0
    assert record["results"]["over plain subprocess"]["median"] > 0


@pytest.mark.usefixtures("sandbox")
def test_sides_that_disagree_end_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(code, "_plain", lambda answer: True)
    assert main(SHORT) == 1
    assert "the sandbox and a plain subprocess disagree on 2 of 4 answers" in capsys.readouterr().err


def test_math_runs_with_and_without_its_peer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rewards.json"
    assert main(["rewards", "--kind", "math", "--answers", "40", "--rounds", "1", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "500 answers/s on two cores is the aim" in said
    assert json.loads(out.read_text())["results"]["verifier math"]["median"] > 0
    is_there = importlib.util.find_spec("math_verify") is not None
    assert ("math-verify is not installed: left out" in said) != is_there


def test_half_of_the_math_answers_are_right() -> None:
    verdicts = [mathematics._judge(answer) for answer in mathematics.answers(16)]
    assert verdicts == [True] * 4 + [False] * 4 + [True] * 4 + [False] * 4


def test_half_of_the_answers_are_right() -> None:
    verdicts = [code._plain(answer) for answer in answers(6)]
    assert verdicts == [True, False] * 3


def test_a_machine_without_a_sandbox_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rewards.code.sandbox.bubblewrap._SYSTEM", "/nonexistent")
    monkeypatch.setattr("rewards.code.sandbox.bubblewrap._packaged", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(SHORT) == 1
    assert "bubblewrap is missing" in capsys.readouterr().err
