"""The benchmark of the gateway, in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.bench.__main__ import main
from tools.bench.gateway.sides import DIRECT, GUARDED, WEIR


def test_it_runs_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gateway.json"
    few = ["--streams", "2", "--requests", "40", "--tokens", "4", "--pace-ms", "1", "--pause-ms", "2", "--rounds", "1"]
    assert main(["gateway", *few, "--json", str(out)]) == 0
    assert "2 streams at a time" in capsys.readouterr().out
    results = json.loads(out.read_text())["results"]
    assert set(results["2"]) == {DIRECT, WEIR, GUARDED}
    assert results["2"][WEIR]["cpu_ms"]["median"] > 0 == results["2"][DIRECT]["cpu_ms"]["median"]
    assert set(results["memory_mib"]) == {WEIR, GUARDED}


def test_a_program_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "--litellm", str(tmp_path / "litellm")]) == 1
    assert "litellm is no file" in capsys.readouterr().err
