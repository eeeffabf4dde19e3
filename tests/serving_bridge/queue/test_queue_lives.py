"""kill -9 at every point of a group's way: nothing accepted is lost, nothing is trained on twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.killed_lives import outcomes
from tests.support.queue_engines import ENGINES
from tests.support.queue_lives import GROUPS, POINTS, STEPS

SOME = ("after put", "after lease", "before acknowledge", *(point for point in POINTS if "between" in point))


@pytest.mark.parametrize("points", [SOME, pytest.param(POINTS, marks=pytest.mark.soak)], ids=["some", "all"])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_kill_loses_or_repeats_a_group(
    engine: str, points: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    everything = sorted(f"run/{index}" for index in range(STEPS * GROUPS))
    for outcome in outcomes("tests.support.queue_lives", engine, points, tmp_path, request):
        point = outcome["point"]
        assert outcome["exits"] == [-signal.SIGKILL, 0], point
        assert sorted(outcome["ledger"]) == everything, point  # each once
        assert set(outcome["accepted"]) <= set(outcome["ledger"]), point
        assert outcome["acknowledged"] == STEPS * GROUPS, point
        assert (outcome["left"], outcome["dead"]) == (0, 0), point
        # What a process that died left behind here is younger than what is swept.
        leaves_file = point in ("after acknowledge", "after the row's end and before the file's")
        assert outcome["files"] == int(leaves_file), point
