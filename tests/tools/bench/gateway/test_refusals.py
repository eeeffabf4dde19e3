"""The benchmark of refusals: a short run, with the gateway and the bare server as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.bench.__main__ import main
from tools.bench.gateway.refusals import BARE, GATEWAY, STRANGER


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_it_runs_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "refusals.json"
    assert main(["refusals", "--requests", "400", "--rounds", "2", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())["results"]
    assert set(results) == {GATEWAY, BARE, STRANGER}
    assert all(name in printed for name in results)
    assert all(len(values) == 2 and min(values) > 0 for values in results.values())
