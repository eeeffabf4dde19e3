"""One process at a time for one task: a lock on a file, which ends with its holder, however that ends.

Not filelock's: this one names its holder, and lets work go on where the file system knows no locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from learner_jax.runtime import Waits, WeirError

_POLL_S = 0.1
#: File systems that know no locks: two holders are then not noticed.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class InUseError(WeirError, RuntimeError):
    """Another process is at it; the message names it."""

    can_heal = False


@contextmanager
def sole(path: Path, what: str, *, hint: str) -> Iterator[None]:
    """Holds the lock while the block runs.

    Args:
      path: the lock's file, which stays; its folder is made.
      what: that is held, for the error.
      hint: ends the error: what to do.

    Raises:
      InUseError: another process holds it, here or on another machine that sees the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _try(file):
            raise InUseError(f"{what} is in use by {_holder(file)}: {hint}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def wait_until_free(folder: Path, waits: Waits, *, limit_s: float) -> None:
    """Waits until nobody holds any of a folder's locks: processes that are ending take a moment.

    Raises:
      InUseError: one is still held after `limit_s`.
    """
    for path in sorted(folder.glob("*")):
        with path.open("a+") as file:
            _wait_until_free(file, path, waits, limit_s)


def _wait_until_free(file: TextIO, path: Path, waits: Waits, limit_s: float) -> None:
    with waits.waiting(
        f"{path.name} of an earlier start to end",
        on=_holder(file),
        limit_s=limit_s,
        hint=f"it still works in {path.parents[2]}: stop it",
        error=InUseError,
    ) as wait:
        while not _try(file):
            wait.sleep(_POLL_S)


def _try(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read(200) or "another process"
