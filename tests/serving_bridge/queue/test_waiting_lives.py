"""kill -9 while rewards come: each counts once, and each group is released once with its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.support.queue_engines import ENGINES, fresh_url
from tests.support.reward_lives import GROUPS, POINTS, SIZE, expected

SOME = ("after bring", "before settle")


@pytest.mark.parametrize("points", [SOME, pytest.param(POINTS, marks=pytest.mark.soak)], ids=["some", "all"])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_kill_loses_or_repeats_a_reward(
    engine: str, points: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if engine == "sqlite":
        urls = [str(tmp_path / f"{i}.db") for i in range(len(points))]
    else:
        server = request.getfixturevalue("postgres_url")
        urls = [fresh_url(server) for _ in points]
    lives = tmp_path / "lives"
    lives.mkdir()
    places = map("=".join, zip(points, urls, strict=True))
    program = [sys.executable, "-m", "tests.support.reward_lives", str(lives), *places]
    done = subprocess.run(program, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    outcomes = json.loads(done.stdout)
    assert [outcome["point"] for outcome in outcomes] == list(points)
    for outcome in outcomes:
        point = outcome["point"]
        assert outcome["exits"] == [-signal.SIGKILL, 0], point
        assert sorted(outcome["trained"]) == sorted([name, rewards] for name, rewards in expected().items()), point
        assert outcome["joined"] == GROUPS * SIZE - 1, point
        assert outcome["waiting"] == 0, point
