"""`python -m tools.view registry --web` serves the page of the rollouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.database import is_postgres
from tests.support.canary_world import CanaryWorld
from tests.support.registries import passed_entry
from tools import view

TOKEN = "a-token-that-nobody-guesses"


@contextmanager
def viewed(registry: Path, *more: str) -> Iterator[dict[str, Any]]:
    """What the page of a registry shows."""
    command = [sys.executable, "-m", "tools.view", str(registry), "--web", "--port", "0", "--token-env", "ADMIN_KEY"]
    environment = os.environ | {"ADMIN_KEY": TOKEN}
    process = subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://"), process.communicate(timeout=10)
        asked = urllib.request.Request(f"{line.split()[0]}api/rollouts", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(asked, timeout=10) as reply:
            yield json.load(reply)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert errors == ""


def test_the_view_of_a_registry_is_its_rollouts(tmp_path: Path) -> None:
    world = CanaryWorld.of(tmp_path)
    world.fill()
    world.start().release()
    world.close()
    with viewed(tmp_path) as found:
        assert found["rollouts"][0]["phase"] == "running"
        assert found["can_act"], "with the admin key there are buttons"


def test_any_namespace_is_shown_on_either_engine(database_url: str, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    registry.mkdir()
    index = database_url if is_postgres(database_url) else str(registry / "index.sqlite")
    world = CanaryWorld(index, index if is_postgres(index) else str(registry / "observations.sqlite"))
    for namespace in ("default", "acme"):
        passed_entry(world.index, namespace)
    passed_entry(world.index, "acme")
    world.close()
    where = ["--database", index] if is_postgres(index) else []
    with viewed(registry, "--namespace", "acme", *where) as found:
        assert (found["namespace"], [one["number"] for one in found["entries"]]) == ("acme", [2, 1])
    with viewed(registry, *where) as found:
        assert (found["namespace"], [one["number"] for one in found["entries"]]) == ("default", [1])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--web", "--namespace", "acme"], "--namespace is for the page of a registry"),
        (["--web", "--database", "x.sqlite"], "--database is for the page of a registry"),
        (["--namespace", "acme"], "--namespace is for the page: give --web with it"),
        (["--database", "x.sqlite"], "--database is for the page: give --web with it"),
    ],
)
def test_what_is_for_a_registry_is_refused_for_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    (tmp_path / "config.toml").touch()
    monkeypatch.setattr(sys, "argv", ["view", str(tmp_path), *more])
    with pytest.raises(SystemExit):
        view.main()
    assert said in capsys.readouterr().err


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
