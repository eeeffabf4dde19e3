"""kill -9 while rewards come: each counts once, and each group is released once with its own."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.killed_lives import outcomes
from tests.support.queue_engines import ENGINES
from tests.support.reward_lives import GROUPS, POINTS, SIZE, expected

SOME = ("after bring", "before settle")


@pytest.mark.parametrize("points", [SOME, pytest.param(POINTS, marks=pytest.mark.soak)], ids=["some", "all"])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_kill_loses_or_repeats_a_reward(
    engine: str, points: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for outcome in outcomes("tests.support.reward_lives", engine, points, tmp_path, request):
        point = outcome["point"]
        assert outcome["exits"] == [-signal.SIGKILL, 0], point
        assert sorted(outcome["trained"]) == sorted([name, rewards] for name, rewards in expected().items()), point
        assert outcome["joined"] == GROUPS * SIZE - 1, point
        assert outcome["waiting"] == 0, point
