"""The benchmark of admission measures each part, and bills what it admits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.bench.__main__ import main


def test_each_part_has_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert main(["admission", "--requests", "40", "--rounds", "3", "--tenants", "4", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "us a request, aim below 100" in shown
    record = json.loads(path.read_text())
    assert set(record["results"]) == {"authenticate", "admit and settle", "exchange"}
    assert all(0 < part["median"] < 1e5 for part in record["results"].values())
    assert record["settings"] == {"requests": 40, "rounds": 3, "tenants": 4}
