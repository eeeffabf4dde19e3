"""What the queue holds at most, and how it refuses more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learner_jax.runtime import WeirError
from serving_bridge.queue.rows import Queued, Record

_RETRY_AFTER_S = 0.5


class QueueError(WeirError, RuntimeError):
    """The queue is not the one that was expected, or can't take what it is given."""


class QueueFullError(QueueError):
    """The groups were not accepted: the learner has to consume first. Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float):
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class QueueBounds:
    """What the queue holds at most.

    Attributes:
      max_groups, max_bytes: ready and leased, beyond which `put` refuses (payload bytes). While nothing is ready it
        accepts, so that a learner that gathers a big batch never waits for what the queue refuses; and what several
        processes put at the same moment may go over by as much.
      max_group_bytes: payload of one group.
      max_age_s: groups that were ready for longer become dead letters; None for no limit.
      max_dead: dead letters kept; the oldest beyond are deleted.
    """

    max_groups: int = 16384
    max_bytes: int = 4 * 2**30
    max_group_bytes: int = 256 * 2**20
    max_age_s: float | None = None
    max_dead: int = 1000


def check_room(bounds: QueueBounds, before: Queued, new: Sequence[Record]) -> None:
    """Raises `QueueFullError` if the queue would hold more than it may, unless nothing was ready before."""
    groups = before.num_groups + len(new)
    num_bytes = before.num_bytes + sum(record.num_bytes for record in new)
    if new and before.num_ready and (groups > bounds.max_groups or num_bytes > bounds.max_bytes):
        raise QueueFullError(
            f"the queue is full: it would hold {groups} groups of {num_bytes} bytes, expected at most "
            f"{bounds.max_groups} (store.max_queued_groups) and {bounds.max_bytes} (store.max_queued_bytes); "
            f"the learner consumes too slowly or is away",
            retry_after_s=_RETRY_AFTER_S,
        )
