"""A finding in a folded text, before its place in the original is known."""

from __future__ import annotations

from dataclasses import dataclass

from serving_bridge.safety.decisions import PERSONAL_DATA, Kind


@dataclass(frozen=True, order=True)
class Found:
    """Characters `start` to `end` of a folded text are `kind`; a later `rank` gives way where two overlap."""

    start: int
    end: int
    kind: Kind
    category: str = PERSONAL_DATA
    guard: str = "personal_data"
    rank: int = 0
