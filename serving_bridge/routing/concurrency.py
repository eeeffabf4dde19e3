"""How many answers a replica should be sampling at once, found out from its own metrics.

Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for
Congestion Avoidance in Computer Networks", 1989), begun by doubling until the first sign of too much (slow start of
Jacobson, "Congestion Avoidance and Control", 1988). Several workers that share a replica come to equal shares this way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_DECREASE = 0.7
#: share of the limit that must be in use before it grows: what is not used has not been tried
_IN_USE = 0.8
#: requests waiting, as a share of those running, that are a standing queue and no passing one
_QUEUE_SHARE = 0.1
#: share of the KV cache in use below which a preemption was no lack of memory but a pause for new weights
_PRESSURE = 0.5
#: share of the KV cache beyond which the limit no longer grows
_NEARLY_FULL = 0.9


@dataclass(frozen=True)
class Load:
    """A replica's metrics at one moment.

    Attributes:
      running, waiting: requests; an answer counts once.
      kv_usage: share of the KV cache in use, 0 to 1.
      preemptions: total since the server started.
    """

    running: float
    waiting: float
    kv_usage: float
    preemptions: float

    @property
    def is_paused(self) -> bool:
        """Held for new weights: everything waits and nothing runs."""
        return self.running == 0 and self.waiting > 0

    @property
    def has_queue(self) -> bool:
        return self.waiting > max(1.0, _QUEUE_SHARE * self.running)


@dataclass(frozen=True)
class Limit:
    """Answers in flight that a replica may have from this worker.

    Attributes:
      is_doubling: no sign of too much was seen yet.
    """

    value: int
    is_doubling: bool = True


def adjusted(
    limit: Limit, before: Load | None, now: Load, *, in_flight: int, at_least: int, at_most: int
) -> tuple[Limit, bool]:
    """The limit after one more look at the metrics, and whether it was cut.

    It is cut when requests were preempted for lack of memory, or when a queue stood and did not become shorter between
    both looks; it grows while it is used and nothing waits.

    Args:
      before: the look before this one, None for the first.
      in_flight: this worker's answers on the replica now.
    """
    if before is None or before.is_paused or now.is_paused:
        return limit, False
    pressed = max(before.kv_usage, now.kv_usage) >= _PRESSURE
    preempted = now.preemptions > before.preemptions and pressed
    queued = before.has_queue and now.has_queue and now.waiting >= before.waiting
    if preempted or queued:
        smaller = cut(limit, at_least=at_least)
        return smaller, smaller.value < limit.value
    used = in_flight >= _IN_USE * limit.value
    if not used or now.has_queue or now.kv_usage > _NEARLY_FULL:
        return limit, False
    grown = 2 * limit.value if limit.is_doubling else limit.value + at_least
    return Limit(min(at_most, grown), limit.is_doubling), False


def cut(limit: Limit, *, at_least: int) -> Limit:
    """The limit after a sign of too much."""
    return Limit(max(at_least, math.floor(_DECREASE * limit.value)), is_doubling=False)
