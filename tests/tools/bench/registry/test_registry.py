"""The benchmark of the registry, in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.bench.__main__ import main
from tools.bench.registry import command


def test_it_runs_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "registry.json"
    given = ["registry", "--entries", "250", "--rounds", "2", "--dir", str(tmp_path), "--json", str(out)]
    assert main(given) == 0
    assert "below 50 ms each is the aim" in capsys.readouterr().out
    results = json.loads(out.read_text())["results"]
    assert set(results) == {
        "list the newest 50",
        "look at one",
        "lineage of one",
        "move two aliases",
        "one fsync",
    }
    assert list(tmp_path.iterdir()) == [out], "what it wrote is gone"


def test_an_aim_that_is_missed_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "AIM_MS", 0.0)
    assert main(["registry", "--entries", "3", "--rounds", "1", "--dir", str(tmp_path)]) == 0
    assert "not reached" in capsys.readouterr().out
