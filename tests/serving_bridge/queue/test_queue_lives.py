"""kill -9 at every point of a group's way: nothing accepted is lost, nothing is trained on twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.queue_engines import ENGINES, fresh_url
from tests.support.queue_lives import GROUPS, POINTS, STEPS

SOME = ("after put", "after lease", "before acknowledge", *(point for point in POINTS if "between" in point))


@pytest.mark.parametrize("points", [SOME, pytest.param(POINTS, marks=pytest.mark.soak)], ids=["some", "all"])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_kill_loses_or_repeats_a_group(
    engine: str, points: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if engine == "sqlite":
        urls = [str(tmp_path / f"{i}.db") for i in range(len(points))]
    else:
        server = request.getfixturevalue("postgres_url")
        urls = [fresh_url(server) for _ in points]
    lives = tmp_path / "lives"
    lives.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.queue_lives", str(lives), *map("=".join, zip(points, urls, strict=True))],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        check=True,
    )
    outcomes = json.loads(done.stdout)
    assert [outcome["point"] for outcome in outcomes] == list(points)
    everything = sorted(f"run/{index}" for index in range(STEPS * GROUPS))
    for outcome in outcomes:
        point = outcome["point"]
        assert outcome["exits"] == [-signal.SIGKILL, 0], point
        assert sorted(outcome["ledger"]) == everything, point  # each once
        assert set(outcome["accepted"]) <= set(outcome["ledger"]), point
        assert outcome["acknowledged"] == STEPS * GROUPS, point
        assert (outcome["left"], outcome["dead"]) == (0, 0), point
        # What a process that died left behind here is younger than what is swept.
        leaves_file = point in ("after acknowledge", "after the row's end and before the file's")
        assert outcome["files"] == int(leaves_file), point
