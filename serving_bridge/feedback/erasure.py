"""What a withdrawal takes out of the learner's online queue: the payloads of groups that were made of its sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from serving_bridge.database import Database, DatabaseError, Session, marks, pieces
from serving_bridge.queue import QueueError, TrajectoryQueue, online_run

REASON = "the consent of its user was withdrawn"

#: Opens the queue of online groups; gives None where there is none yet.
OpenQueue = Callable[[], AbstractContextManager[TrajectoryQueue | None]]


def erase_online(database: Database, run: str, opened: OpenQueue) -> int:
    """Takes withdrawn groups out of the queue, in rows and files; returns how many.

    A queue that can't be opened or cleaned now is tried again with the next call.

    Args:
      run: whose groups these are; the queue's ids begin with it.
    """
    numbers = _left(database)
    if not numbers:
        return 0
    try:
        with opened() as queue:
            names = [f"{online_run(run)}/{number}" for number in numbers]
            if queue is not None and not queue.admin.erase(names, REASON):
                return 0
    except (DatabaseError, QueueError, OSError):
        return 0
    for piece in pieces(numbers):
        database.write(partial(_mark_erased, numbers=piece))
    return len(numbers)


def unerased_groups(database: Database) -> int:
    """Withdrawn groups of which the queue may still hold something."""
    return len(_left(database))


def _left(database: Database) -> list[int]:
    rows = database.read(
        lambda session: session.execute(
            "SELECT number FROM online_groups WHERE state = 'withdrawn' AND erased = 0 ORDER BY number"
        )
    )
    return [number for (number,) in rows]


def _mark_erased(session: Session, numbers: Sequence[int]) -> None:
    session.execute(f"UPDATE online_groups SET erased = 1 WHERE number IN ({marks(numbers)})", numbers)
