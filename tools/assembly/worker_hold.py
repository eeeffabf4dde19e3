"""Rollout workers that are loaded and wait: they sample nothing while the first version's skill is measured.

A worker loads for seconds, and so does an engine: they do it side by side. But answers that are trained on make the
next version, and the evaluation before training needs the first one on its replica until it has ended.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from learner_jax.runtime import Waits, WaitTimeoutError, printable, write_whole

_POLL_S = 0.05
_RENEW_EVERY_S = 1.0


class WorkerHold:
    """A file of the run's directory; workers wait while it is there, and give up once nobody renews it.

    Args:
      file: seen by all hosts of the run.
    """

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._is_set, self._renewed_s, self._count = False, 0.0, 0

    def set(self) -> None:
        """Raises `OSError` where the file can't be written."""
        self._is_set, self._renewed_s = True, self._clock()
        self._count += 1
        write_whole(self._file, str(self._count).encode())

    def renew(self) -> None:
        """Shows the workers that they are still thought of; does nothing where the hold is not set."""
        if self._clock() >= self._renewed_s + _RENEW_EVERY_S and self._is_set:
            with contextlib.suppress(OSError):  # a disk that is full for a while: workers wait for much longer
                self.set()

    def lift(self) -> None:
        """Also one that an earlier process left behind."""
        self._is_set = False
        self._file.unlink(missing_ok=True)


def wait_while_held(file: Path, *, max_wait_s: float, waits: Waits, should_stop: Callable[[], bool]) -> bool:
    """Returns whether the worker may begin; False if a stop was asked for.

    Args:
      file: of the `WorkerHold`.
      max_wait_s: bound on the time in which nobody renews the hold.

    Raises:
      WaitTimeoutError: nobody did.
    """
    seen = _content(file)
    if seen is None:
        return not should_stop()
    with waits.waiting(
        "the evaluation before training to end",
        on="train",
        limit_s=max_wait_s,
        setting="rollout.max_wait_s",
        error=WaitTimeoutError,
    ) as wait:
        wait.hint(f"if no tools.train works on this run, delete {printable(file)}")
        while seen is not None and not should_stop():
            wait.sleep(_POLL_S)
            now = _content(file)
            if now != seen:
                wait.progressed()
            seen = now
    return not should_stop()


def _content(file: Path) -> bytes | None:
    """Opened each time: a network disk then asks its server whether the file is still there."""
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes()
    return None
