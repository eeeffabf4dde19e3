"""The benchmark of isolation: what is refused at once, and (soak) a short run on real vLLM."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tools.bench.__main__ import main
from tools.bench.gateway.isolation import AIMS, ALONE, AS_USERS


def test_one_core_is_too_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert main(["isolation"]) == 1
    assert "a core each" in capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_it_runs_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "isolation.json"
    assert main(["isolation", "--seconds", "3", "--rounds", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in AIMS)
    (blocks,) = json.loads(out.read_text())["results"]
    assert set(blocks) == {ALONE, AS_USERS, *AIMS}
    assert all(0 < block["p50_ms"] <= block["p95_ms"] for block in blocks.values())
    assert blocks["neighbour"]["refused"] > 100
