"""Whose turn it is to change a worker's weights: two controllers at once must not undo each other's pauses."""

from __future__ import annotations

import time
from collections.abc import Callable

from learner_jax.runtime import WeirError

#: longest lease: a controller that died keeps others out for no longer
MAX_LEASE_S = 86_400.0


class LeaseError(WeirError, RuntimeError):
    """Another round holds the worker, or asks for it for too long."""


class Lease:
    """Who may change the worker's weights now: one round at a time, for as long as its controller keeps asking."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._holder: str | None = None
        self._duration_s = 0.0
        self._end_s = float("-inf")

    def take(self, round_id: str, duration_s: float) -> None:
        """Raises `LeaseError` if another round holds it, or for a duration that is not within a day."""
        if not 0 < duration_s <= MAX_LEASE_S:
            raise LeaseError(f"a lease of {duration_s} s, expected more than 0 and at most {MAX_LEASE_S}")
        left_s = self._end_s - self._clock()
        if self._holder not in (None, round_id) and left_s > 0:
            raise LeaseError(
                f"round {self._holder} of another controller holds this replica for up to {left_s:.1f} s more; "
                f"expected one controller at a time"
            )
        self._holder, self._duration_s = round_id, duration_s
        self._end_s = self._clock() + duration_s

    def renew(self, round_id: str) -> None:
        """Starts the time anew if this round holds it, also if it ran out and nobody else came."""
        if round_id == self._holder:
            self._end_s = self._clock() + self._duration_s

    def check(self, round_id: str) -> None:
        """Raises `LeaseError` unless this round holds it."""
        if round_id != self._holder:
            raise LeaseError(f"round {round_id} does not hold this replica, round {self._holder} does; stage first")

    def release(self, round_id: str) -> None:
        """Gives it back if this round holds it."""
        if round_id == self._holder:
            self._holder, self._end_s = None, float("-inf")
