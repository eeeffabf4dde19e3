"""`python -m tools.view registry --web` serves the page of the rollouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.canary_world import CanaryWorld
from tools import view

TOKEN = "a-token-that-nobody-guesses"


def test_the_view_of_a_registry_is_its_rollouts(tmp_path: Path) -> None:
    world = CanaryWorld.of(tmp_path)
    world.fill()
    world.start().release()
    world.close()
    command = [sys.executable, "-m", "tools.view", str(tmp_path), "--web", "--port", "0", "--token-env", "ADMIN_KEY"]
    environment = os.environ | {"ADMIN_KEY": TOKEN}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        asked = urllib.request.Request(f"{address}api/rollouts", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(asked, timeout=10) as reply:
            found = json.load(reply)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert errors == ""
    assert found["rollouts"][0]["phase"] == "running"
    assert found["can_act"], "with the admin key there are buttons"


def test_a_registry_is_shown_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.sqlite").touch()
    assert view.is_registry(tmp_path)
    monkeypatch.setattr(sys, "argv", ["view", str(tmp_path), str(tmp_path / "run"), "--web"])
    with pytest.raises(SystemExit):
        view.main()
    assert "is a registry, which has a page of its own: name it alone" in capsys.readouterr().err
    (tmp_path / "config.toml").touch()
    assert not view.is_registry(tmp_path)
