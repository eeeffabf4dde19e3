"""Two rewards that differ in time alone: one answers at once, one after a second."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

SLEEP_S = 1.0


def at_once(prompt: str, answer: str, row: Mapping[str, Any]) -> float:
    """1 for answers of an odd number of characters, else 0."""
    return float(len(answer) % 2)


async def after_a_second(prompt: str, answer: str, row: Mapping[str, Any]) -> float:
    """The same, `SLEEP_S` later."""
    await asyncio.sleep(SLEEP_S)
    return at_once(prompt, answer, row)
