"""Full and failing disks: how an error of one is recognized, whoever raised it, and that it is told of once."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
#: TensorStore raises a ValueError that has the number in its text alone.
_IN_TEXT = re.compile(r"\[os_error_code='(\d+)'")


def disk_failure(error: BaseException | None) -> OSError | None:
    """The full or failing disk behind an error: the error itself, what it was raised from, or what it came after."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return error
        if isinstance(error, ValueError) and (found := _IN_TEXT.search(str(error))) and int(found[1]) in _NUMBERS:
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


@contextmanager
def at(path: str | Path) -> Iterator[None]:
    """Names the file or folder in errors of the block that name none, as those of writes to open files do."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def tell_once() -> None:
    """Keeps Orbax, TensorStore and asyncio from printing tracebacks of a disk's failure, for the rest of the process.

    Each of their threads that meets it would, and `Checkpoints` raises it where the save is waited for.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_other)
    given = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # TensorStore, whose write ended after Orbax had given the save up and closed the loop that awaited it.
        if unraisable.exc_type is not RuntimeError or str(unraisable.exc_value) != "Event loop is closed":
            given(unraisable)

    sys.unraisablehook = hook
    # Orbax, which makes the coroutines of all arrays and awaits none of them after the first that fails.
    warnings.filterwarnings("ignore", r"coroutine 'async_serialize_from_host\.", RuntimeWarning)


def _is_other(record: logging.LogRecord) -> bool:
    return not record.exc_info or disk_failure(record.exc_info[1]) is None
