"""Verifiers that may hang or die run in worker processes that can be killed.

Covers: endless loops, memory beyond a limit, crashes. It is no sandbox: the code that runs is a library's verifier
reading a model's text, never code that the model wrote.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from pebble import ProcessExpired, ProcessPool

_MEMORY_LIMIT_BYTES = 8 << 30
_END_S = 10.0


class VerifierError(Exception):
    """The verifier gave no verdict: it raised, died or passed its deadline."""


class KillablePool:
    """Worker processes with a deadline per call; one that misses it is killed and replaced.

    Workers are spawned, not forked: the processes that use this hold threads. They start with the first call and end
    with `close`, or with the process that owns the pool.
    """

    def __init__(self, *, num_workers: int, deadline_s: float, warm_up: Callable[[], object]) -> None:
        """`warm_up` runs in each new worker before its first call and isn't counted in the deadline: import there."""
        self._deadline_s = deadline_s
        # Covers the start of workers and calls queued before this one, so that no wait is endless.
        self._max_wait_s = 120 + 10 * deadline_s
        self._pool = ProcessPool(
            max_workers=num_workers,
            initializer=_start_worker,
            initargs=(warm_up,),
            context=multiprocessing.get_context("spawn"),
        )

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)` in a worker; function, arguments and result must pickle.

        Raises:
          VerifierError: no result within the deadline, or the function raised, or its process died.
        """
        future = self._pool.schedule(function, args=args, timeout=self._deadline_s)
        try:
            error = future.exception(timeout=self._max_wait_s)
        except FutureTimeoutError:
            future.cancel()
            raise VerifierError(f"no worker was free within {self._max_wait_s:g} s") from None
        match error:
            case None:
                return future.result()
            case FutureTimeoutError():
                raise VerifierError(f"no verdict within {self._deadline_s:g} s")
            case ProcessExpired():
                raise VerifierError(f"the verifier's process died with exit code {error.exitcode}")
            case _:  # SystemExit included: what a verifier raises must never end its caller
                raise VerifierError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        self._pool.stop()
        self._pool.join(timeout=_END_S)


def _start_worker(warm_up: Callable[[], object]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    warm_up()
