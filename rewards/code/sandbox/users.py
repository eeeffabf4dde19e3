"""Users for sandboxes: root gives each sandbox one that nobody else is, anybody else stays who he is."""

from __future__ import annotations

import os
import random
from pathlib import Path

from rewards.code.sandbox.limits import SandboxError

#: numbers that no system gives to people, services or containers
_RANGE = (0x70000000, 0x7FFEFFFF)
_SMALL_RANGE = (60_100, 64_900)


def next_user() -> int | None:
    """A user's number for one sandbox; None where this process is not root.

    Raises:
      SandboxError: this process is root in a container that has no such numbers.
    """
    if os.geteuid() != 0:
        return None
    maps = Path("/proc/self/uid_map").read_text(), Path("/proc/self/gid_map").read_text()
    for first, last in (_RANGE, _SMALL_RANGE):
        if all(_maps(text, first, last) for text in maps):
            return random.SystemRandom().randint(first, last)
    raise SandboxError(
        "root has no other user to run code as: this container maps too few user numbers; start Weir as an ordinary "
        "user, or give the container 65536 numbers or more"
    )


def _maps(text: str, first: int, last: int) -> bool:
    ranges = (tuple(map(int, line.split())) for line in text.splitlines())
    return any(inside <= first and last < inside + count for inside, _, count in ranges)
