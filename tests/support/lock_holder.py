"""Holds a lock in a process of its own, which imports little."""

from __future__ import annotations

from multiprocessing.synchronize import Event
from pathlib import Path

from serving_bridge.processes.lock import sole


def hold(path: Path, holds: Event, ends: Event) -> None:
    """Says that it holds the lock, and lets go of it when told, or after a minute."""
    with sole(path, "it", hint=""):
        holds.set()
        ends.wait(60)
