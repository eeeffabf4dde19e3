"""Named places in the code where a test can have the process killed, to prove that it may die there.

WEIR_CRASH_AT=published:3 kills the process by SIGKILL when it passes the point "published" for the third time.
WEIR_CRASH_AT=@FILE looks into FILE at every point instead, so that a process that already runs can be told; the file is
deleted first, and what is started again lives. Without the variable a point costs a call.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

_VARIABLE = "WEIR_CRASH_AT"


def crash_point(name: str) -> None:
    """Kills this process if it was told to die here."""
    trap = _trap()
    if trap is not None:
        trap.passed(name)


@cache
def _trap() -> CrashTrap | None:
    told = os.environ.get(_VARIABLE, "")
    return CrashTrap(told) if told else None


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class CrashTrap:
    """Counts how often a point was passed.

    Args:
      told: `point`, `point:count`, or `@file` of a file that holds one of these or does not exist yet.
      kill: ends the process.

    Raises:
      ValueError: the count is not a number of at least 1.
    """

    def __init__(self, told: str, kill: Callable[[], None] = _kill) -> None:
        self._file = Path(told[1:]) if told.startswith("@") else None
        self._kill = kill
        self._told, self._point, self._count, self._passed = "", "", 1, 0
        if self._file is None:
            self._tell(told)

    def passed(self, name: str) -> None:
        if self._file is not None:
            try:
                self._tell(self._file.read_text().strip())
            except FileNotFoundError:
                return
        if name != self._point:
            return
        self._passed += 1
        if self._passed == self._count:
            if self._file is not None:
                self._file.unlink()
            self._kill()

    def _tell(self, told: str) -> None:
        """Counts from 0 if this is another order than before."""
        if told == self._told:
            return
        point, _, count = told.partition(":")
        if count and not (count.isdigit() and int(count) >= 1):
            raise ValueError(f"{_VARIABLE} is {told!r}, expected point or point:count with a count of at least 1")
        self._told, self._passed = told, 0
        self._point, self._count = point, int(count or 1)
