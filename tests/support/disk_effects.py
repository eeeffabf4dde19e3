"""What reaches the disk and in which order: a power failure forgets what was not synced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def effects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Syncs and renames in the order in which they are done, with the name that each acts on."""
    seen: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        sync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        size = path.stat().st_size if path.is_file() else ""
        seen.append(f"sync {path.name} {size}".strip())

    def noted_replace(source: Path, target: Path) -> None:
        replace(source, target)
        seen.append(f"rename to {Path(target).name}")

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return seen
