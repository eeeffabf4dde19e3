"""Errors that a person can do something about, as one line and an exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from learner_jax.runtime import WeirError, disk_failure, printable
from serving_bridge.database import DiskFullError
from serving_bridge.processes import GuardError, ProcessFailedError
from tools.reporting import prepare_streams

#: Exit status where a disk is full or fails (EX_IOERR of sysexits.h).
DISK_STATUS = os.EX_IOERR
_KEPT = (
    "nothing that was accepted is lost: see to that disk and start again; a learner goes on from its last committed "
    "checkpoint"
)
#: Exit status after Ctrl-C, as shells have it.
INTERRUPTED = 130
#: A path that was given can't be used: no bug, but nothing that waiting would change either.
_WRONG_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns errors that a person can do something about into one line on stderr and an exit status.

    These are `WeirError`s, with their exit status, and wrong paths. Errors of full or failing disks have `DISK_STATUS`,
    whoever raised them. Ctrl-C is no error: a command that has more to say of it catches it inside.
    """
    prepare_streams()
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        text, status = _told(error)
        if text is None:
            raise
        with contextlib.suppress(OSError):  # stderr may be a file on that disk; the status then has to do
            print(f"error: {printable(text, keep_lines=True)}", file=sys.stderr)
        raise SystemExit(status) from None


def _told(error: Exception) -> tuple[str | None, int]:
    """What a person reads of an error, and the exit status; None if it is not one for people."""
    failure = disk_failure(error)
    text = str(error) if isinstance(error, WeirError | GuardError) else None
    if text is None and isinstance(error, OSError) and error.errno in _WRONG_PATH and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    if text is None and failure is not None:
        text = f"{failure.filename or 'a file'} can't be written or read: {failure.strerror}"
    of_child = isinstance(error, ProcessFailedError) and error.status == DISK_STATUS
    if failure is None and not of_child and not isinstance(error, DiskFullError):
        return text, error.exit_status if isinstance(error, WeirError) else 1
    return f"{text}; {_KEPT}", DISK_STATUS
