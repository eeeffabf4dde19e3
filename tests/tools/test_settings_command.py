"""`weir settings` prints what the schema says, for people and for programs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tools.settings import main


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["weir settings", *arguments])
    monkeypatch.setenv("COLUMNS", "80")
    main()
    return capsys.readouterr().out


def test_a_setting_says_what_it_takes_and_what_it_means(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(capsys, monkeypatch, "rollout.max_stal").splitlines()
    assert lines[0] == "rollout.max_staleness   integer, at least 0, default 2"
    assert lines[1] == "    versions a group may lag when trained on; 0 is synchronous"
    assert len(lines) == 2


def test_programs_get_the_same_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = json.loads(printed(capsys, monkeypatch, "rollout.max_staleness", "--json"))
    assert (found["name"], found["type"], found["default"], found["range"]) == (
        "rollout.max_staleness",
        "integer",
        "2",
        "at least 0",
    )
    names = printed(capsys, monkeypatch, "warm_start", "--names").split()
    assert names[:2] == ["warm_start", "warm_start.target_accuracy"]
    assert all(name.startswith("warm_start") for name in names)


def test_an_unknown_prefix_is_refused_with_the_nearest_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        printed(capsys, monkeypatch, "learner.learning_rate")
    assert "did you mean learner.optimizer.learning_rate" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m tools.settings | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
