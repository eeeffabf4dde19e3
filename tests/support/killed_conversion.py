"""A conversion that is killed: python -m tests.support.killed_conversion PIECES to-hf|from-hf SOURCE OUT"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from typing import NoReturn

from learner_jax.conversion import convert, work_folder

#: More pieces than there are: killed when all is written and only the name is missing.
ALL = 1000


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_after(pieces: int) -> None:
    """Has this process killed once so many pieces are finished, or when the result gets its name."""
    finish = work_folder.Work.finish

    def counted(work: work_folder.Work, names: Iterable[str]) -> None:
        nonlocal pieces
        names = list(names)
        finish(work, names)
        pieces -= len(names)
        if pieces <= 0:
            die()

    work_folder.Settler.__init__.__kwdefaults__["every_bytes"] = 1
    work_folder.Work.finish = counted  # type: ignore[method-assign]
    if pieces == ALL:
        work_folder.Work.publish = lambda work: die()  # type: ignore[method-assign]


def main() -> None:
    pieces, command, source, out = sys.argv[1:]
    die_after(int(pieces))
    if command == "to-hf":
        convert.to_hf(source, out=out, max_shard_bytes=20_000)
    else:
        convert.from_hf(source, out=out)


if __name__ == "__main__":
    main()
