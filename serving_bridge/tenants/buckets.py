"""A gateway's part of a limit: a bucket that fills with time, and places for answers at the same time.

Each takes a *share*, from 0 to 1: the part of the limit that this gateway holds at the moment (`slices`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Bucket:
    """A token bucket by a monotonic clock.

    With share s it fills at `s * rate` a second up to `s * burst`. A cost is taken when the bucket holds it, or is
    full: a cost above `s * burst` then leaves a debt, which filling repays. So a share below 1 never makes a request
    impossible that the limit allows, and the level stays at or above `-max(cost - s * burst, 0)`.

    Attributes:
      rate: units a second of the whole limit.
      burst: units of the whole limit that may come at once.
      level: units that may be taken now, at `filled_s`; negative is a debt.
    """

    rate: float
    burst: float
    share: float
    level: float
    filled_s: float

    @property
    def capacity(self) -> float:
        return self.share * self.burst

    def fill(self, now: float) -> None:
        """Moves the level on to the present; a clock that went back changes nothing."""
        if now > self.filled_s:
            self.level = max(
                self.level, min(self.capacity, self.level + (now - self.filled_s) * self.rate * self.share)
            )
            self.filled_s = now

    def wait_s(self, cost: float, now: float) -> float:
        """Seconds until a cost can be taken, 0 if it can now; infinite if the bucket does not fill."""
        self.fill(now)
        missing = min(cost, self.capacity) - self.level
        if missing <= 0:
            return 0.0 if self.capacity > 0 else math.inf
        speed = self.rate * self.share
        return missing / speed if speed > 0 else math.inf

    def take(self, cost: float) -> None:
        self.level -= cost

    def give_back(self, amount: float) -> None:
        """Returns what was taken and not used; never beyond the capacity. A negative amount takes more."""
        self.level = min(max(self.capacity, self.level), self.level + amount)

    def reshare(self, share: float, now: float) -> float:
        """Changes the share; returns the units that the smaller one gives up, for whoever takes the rest of the share.

        A larger share brings no units of its own: they come with it from who gave it up, or with time.
        """
        self.fill(now)
        given_up = 0.0
        if share < self.share and self.level > 0:
            kept = self.level * (share / self.share)
            given_up, self.level = self.level - kept, kept
        self.share = share
        return given_up


@dataclass
class Places:
    """Places for answers at the same time.

    Attributes:
      limit: of all gateways together.
      used: by this gateway.
    """

    limit: int
    share: float
    used: int = 0

    @property
    def allowed(self) -> int:
        """This gateway's part, whole places; the parts of all gateways together are at most `limit`."""
        return math.floor(self.share * self.limit + 1e-9)

    def is_free(self) -> bool:
        return self.used < self.allowed
