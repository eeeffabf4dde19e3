"""The learner benchmark as a command: it compares before it times, and refuses what makes no sense."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench_batches import first_step
from tools.bench.__main__ import main
from tools.bench.learner import command
from tools.bench.learner.cases import PaddedBatch
from tools.bench.learner.sides import Result


class FakeSides:
    """Answers commands as sides would, Weir in 100 ms of CPU time; remembers how many steps were asked for."""

    def __init__(self, **wrong: float) -> None:
        self.steps: list[int] = []
        self._wrong = wrong

    def __call__(self, command: Sequence[str], environment: Mapping[str, str]) -> Result:
        assert environment["JAX_PLATFORMS"] == "cpu"
        assert "PYTHONPATH" not in environment
        self.steps.append(int(command[command.index("--steps") + 1]))
        batch = PaddedBatch.read(Path(command[command.index("--batch") + 1]))
        name = next((name for name in ("tunix", "trl") if any(f"peer_{name}_step" in part for part in command)), "weir")
        wrong = self._wrong if name == "trl" else {}
        cpu = {"weir": 100.0, "tunix": 400.0, "trl": 150.0}[name]
        return first_step(batch, name, step_cpu_ms=cpu, **wrong)


@pytest.fixture
def peers_there(tmp_path: Path) -> list[str]:
    for name in ("tunix", "trl"):
        (tmp_path / f"peer_{name}_step.py").touch()
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").touch()
    return ["--peers", str(tmp_path), "--environments", str(tmp_path)]


CASES = ["--cases", "uniform", "lognormal", "prefix"]


def test_whole_command_writes_tables_aims_and_figures(
    peers_there: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = FakeSides()
    monkeypatch.setattr(command, "run_process", sides)
    path = tmp_path / "learner.json"
    assert main(["learner", *CASES, *peers_there, "--rounds", "2", "--steps", "4", "--json", str(path)]) == 0
    processes = 3 + 5 + 3
    assert sides.steps == [1] * processes + [4] * (2 * processes)
    out = capsys.readouterr().out
    for line in (
        "uniform: 0.25x Tunix's CPU time (aim <= 0.8): met",
        "uniform: 0.67x TRL's CPU time (aim <= 0.6): NOT met",
        "lognormal: 4.00x as fast as Tunix by CPU time (aim >= 2.5): met",
        "lognormal: 1.50x as fast as TRL by CPU time (aim >= 2.5): NOT met",
        "lognormal: 1.50x as fast as TRL at its best flags by CPU time (aim >= 1.15): met",
        "prefix: 1.50x as fast as TRL by CPU time (aim >= 3): NOT met",
    ):
        assert line in out
    record = json.loads(path.read_text())
    assert (record["schema"], record["benchmark"]) == ("weir-bench/1", "learner")
    assert record["settings"]["peers"]["trl"][0] == "torch==2.13.0"
    assert len(record["results"]["rounds"]["lognormal"]["trl, best"]) == 2
    row = record["results"]["rows"][1]
    assert (row["case"], row["side"]) == ("uniform", "tunix")
    assert row["peer_over_weir"] == {"median": 4.0, "minimum": 4.0, "maximum": 4.0}
    assert row["tokens_per_s"]["median"] == pytest.approx(4096 / 0.25)
    assert sum(not aim["met"] for aim in record["results"]["aims"]) == 3


def test_nothing_is_timed_when_sides_disagree(
    peers_there: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = FakeSides(grad_norm=1.01)
    monkeypatch.setattr(command, "run_process", sides)
    assert main(["learner", *CASES, *peers_there, "--steps", "4"]) == 1
    assert set(sides.steps) == {1}
    assert "error: uniform: trl gives gradient norm 1.01" in capsys.readouterr().err


def test_weir_alone_needs_no_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_process", FakeSides())
    monkeypatch.setenv("WEIR_PEERS", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["learner", "--sides", "weir", "--cases", "uniform", "--rounds", "1"]) == 0
    assert "aim" not in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "unifrom"], "argument --cases: invalid choice: 'unifrom' (choose from"),
        (["--sides", "verl"], "argument --sides: invalid choice: 'verl'"),
        (["--rounds", "0"], "--rounds: expected a whole number of at least 1, got '0'"),
        (["--steps", "x"], "--steps: expected a whole number of at least 1, got 'x'"),
        (["--core", "4096"], "--core 4096: expected one of 0"),
        (["--model", "Qwen3-4B"], "--model and --rows are for --device gpu"),
        (["--device", "gpu", "--model", "Qwen3-9B"], "argument --model: invalid choice: 'Qwen3-9B'"),
        (["--json", "nowhere/x.json"], "--json: expected a file in an existing folder, got 'nowhere/x.json'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["learner", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_missing_scripts_are_an_error_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any) -> Result:
        raise AssertionError("ran without its peers")

    monkeypatch.setattr(command, "run_process", run)
    assert main(["learner", "--peers", str(tmp_path), "--cases", "uniform"]) == 1
    assert f"error: peer_tunix_step.py and peer_trl_step.py expected in {tmp_path}" in capsys.readouterr().err
