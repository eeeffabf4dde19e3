"""The command: what it refuses, in which order sides run, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.new_models import created
from tools.bench.__main__ import main
from tools.bench.end_to_end import command
from tools.bench.end_to_end.agreement import FirstStep
from tools.bench.end_to_end.figures import Run, Skill, Step
from tools.bench.end_to_end.sides import Launch
from tools.bench.processes import Sample

__all__ = ["created"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "poems"], "--workload: invalid choice: 'poems'"),
        (["--workload", "stories"], "--workload stories starts from a model of yours: name its folder with --model"),
        (["--workload", "chat", "--sides", "weir"], "name its folder with --model"),
        (["--model", "nowhere"], "--model: expected an existing folder, got 'nowhere'"),
        (["--sides", "verl"], "--sides: invalid choice: 'verl'"),
        (["--rounds", "0"], "--rounds: expected a whole number of at least 1, got '0'"),
        (["--steps", "20", "--skip", "19"], "--skip 19: expected at least 2 fewer than --steps 20"),
        (["--target", "60"], "--target: expected a share between 0 and 1, got '60'"),
        (["--target", "much"], "--target: expected a share between 0 and 1, got 'much'"),
        (["--sides", "weir", "base"], "--base names the checkout of the side base: give both or neither"),
        (["--base", "."], "--base names the checkout of the side base: give both or neither"),
        (["--json", "nowhere/x.json"], "--json: expected a file in an existing folder"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["end_to_end", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_environment_is_told_before_anything_starts(
    created: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(created), "--environments", str(tmp_path)]
    assert main(["end_to_end", *given]) == 1
    assert "--environments names a folder with trl/ in it" in capsys.readouterr().err


def a_run(wall: float) -> Run:
    steps = tuple(Step(number, 100 + wall * number, tokens=50, reward=0.5) for number in range(1, 9))
    samples = tuple(Sample(100 + t, {"a": 0.5 * t}, {"a": 2**20}, 1.0, 2.0 * t) for t in range(40))
    return Run(90.0, steps, (Skill(8, 140.0, 0.0, 0.7, 0.7),), samples)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Which side's run was asked for, in order; nothing is started."""
    order: list[str] = []

    def run_side(launch: Launch, **settings: Any) -> Run:
        order.append(launch.log.parent.name)
        assert settings["steps"] == 8
        return a_run(wall=2.0 if launch.log.parent.name.startswith("weir") else 4.0)

    def agreement(plan: Any, side: str, *_: Any) -> dict[str, list[FirstStep]]:
        order.append(f"first step of {side}")
        return {side: [FirstStep(0.0, 1.0), FirstStep(0.1, 2.0)], "weir": [FirstStep(0.0, 1.0), FirstStep(0.1, 2.5)]}

    monkeypatch.setattr(command, "run_side", run_side)
    monkeypatch.setattr(command, "_agreement", agreement)
    monkeypatch.setattr(command, "environment", lambda name, given: tmp_path / name / "bin" / "python")
    return order


def test_sides_take_turns_and_a_first_step_is_compared_once(
    created: Path, ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    given = ["--model", str(created), "--rounds", "3", "--steps", "8", "--skip", "2", "--target", "0.6"]
    assert main(["end_to_end", *given, "--json", str(path)]) == 0
    runs = [name for name in ran if not name.startswith("first")]
    assert runs == ["weir-0", "trl-0", "trl-1", "weir-1", "weir-2", "trl-2"]
    assert ran.count("first step of trl") == 1
    record = json.loads(path.read_text())
    assert record["benchmark"] == "end_to_end"
    assert record["settings"]["target"] == 0.6
    assert record["settings"]["evaluate_every"] == 10
    assert f"model.path={created}" in record["settings"]["overrides"]
    results = record["results"]
    assert results["ratios"]["trl"]["wall a step"] == pytest.approx({"median": 0.5, "p10": 0.5, "p90": 0.5})
    assert [len(runs) for runs in results["runs"].values()] == [3, 3]
    assert results["runs"]["weir"][0]["target"] == [50.0, 8]
    assert results["first_steps"]["trl"]["weir"][0] == {"loss": 0.0, "grad_norm": 1.0}
    out = capsys.readouterr().out
    assert "first step of TRL: loss 0 (Weir's learner 0)" in out
    assert "step 2 of TRL: loss 0.1 (Weir's learner 0.1), gradient norm 2 (2.5)" in out


def test_runs_and_logs_stay_in_the_folder_that_is_named(created: Path, ran: list[str], tmp_path: Path) -> None:
    given = ["--model", str(created), "--rounds", "1", "--steps", "8", "--skip", "2", "--sides", "trl"]
    assert main(["end_to_end", *given, "--work", str(tmp_path / "kept")]) == 0
    (job,) = (tmp_path / "kept").glob("*/trl-0/job.json")
    assert json.loads(job.read_text())["model"] == str(created)
