"""Commits of checkpoints that wait until a test lets them go on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest


class Hold:
    """Holds Orbax back from writing the manifest, and so from committing, until released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.released = threading.Event(), threading.Event()
        real = json.dumps

        def held(value: Any, *args: Any, **kwargs: Any) -> str:
            if isinstance(value, dict) and "position" in value:
                self.reached.set()
                assert self.released.wait(30)
            return real(value, *args, **kwargs)

        monkeypatch.setattr(json, "dumps", held)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    held = Hold(monkeypatch)
    yield held
    held.released.set()
