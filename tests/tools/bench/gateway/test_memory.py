"""The benchmark of the gateway's memory: the slope, and (soak) a short run of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools.bench.__main__ import main
from tools.bench.gateway.memory import growth_of


def test_the_growth_is_the_slope_after_the_first_quarter() -> None:
    times = np.linspace(0, 60, 361)
    noise = np.random.default_rng(0).normal(0, 0.2, len(times))
    sizes = 100 + np.where(times < 15, times, 15) + 3 * times / 60 + noise
    found = growth_of(list(zip(times, sizes, strict=True)), requests=7, cpu_cores=0.1)
    assert abs(found.mib_an_hour - 3) < found.error < 0.5
    assert found.settled_mib == pytest.approx(115.75, abs=0.7)
    flat = growth_of([(minute, 100.0) for minute in times], requests=7, cpu_cores=0.1)
    assert (flat.mib_an_hour, flat.error) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))


def test_too_short_a_time_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gateway_memory", "--minutes", "1"])
    assert "expected 20 looks or more" in capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_it_runs_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "memory.json"
    assert main(["gateway_memory", "--minutes", "0.2", "--every-s", "0.5", "--json", str(out)]) == 0
    assert "MiB an hour" in capsys.readouterr().out
    results = json.loads(out.read_text())["results"]
    assert results["requests"] > 20
    assert 50 < results["last_mib"] < 500
