"""Programs whose lives are killed at named points, one database for each point, on either engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.support.queue_engines import fresh_url


def outcomes(
    module: str, engine: str, points: Sequence[str], folder: Path, request: pytest.FixtureRequest
) -> list[dict[str, Any]]:
    """What a program says of each point: it is given a folder, and POINT=URL for each."""
    if engine == "sqlite":
        urls = [str(folder / f"{i}.db") for i in range(len(points))]
    else:
        server = request.getfixturevalue("postgres_url")
        urls = [fresh_url(server) for _ in points]
    lives = folder / "lives"
    lives.mkdir()
    program = [sys.executable, "-m", module, str(lives), *map("=".join, zip(points, urls, strict=True))]
    done = subprocess.run(program, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert [outcome["point"] for outcome in found] == list(points)
    return found
