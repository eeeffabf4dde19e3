"""A second connection to a job's queue that misbehaves: delivers groups again, consumes what is no longer its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from learner_jax.contracts import Trajectory, decode_group
from learner_jax.runtime import WeirError
from serving_bridge.queue import LeaseLostError, TrajectoryQueue

#: (prompt index, trajectories), as a rollout worker puts them
Delivery = tuple[int, list[Trajectory]]
OpenQueue = Callable[[], TrajectoryQueue]

_KEPT = 64
_AT_ONCE = 8
_NEVER_STALE = 1 << 30
_READY_WITHIN_S, _POLL_S = 2.0, 0.002


class SecondTakeError(WeirError, RuntimeError):
    """A consumer that came too late was believed."""


def epoch(open_queue: OpenQueue) -> int:
    """Number of the learner whose turn it is."""
    with closing(open_queue()) as queue:
        return _read(queue, "SELECT value FROM progress WHERE key = 'consumer_epoch'")[0][0]


def seen(open_queue: OpenQueue, before: list[Delivery]) -> list[Delivery]:
    """Groups in the queue now, and earlier ones."""
    with closing(open_queue()) as queue:
        rows = _read(queue, "SELECT prompt_index, payload FROM groups JOIN payloads USING (sequence)")
    known = {index for index, _ in before}
    return [*before, *((index, decode_group(payload)) for index, payload in rows if index not in known)][-_KEPT:]


def deliver_again(open_queue: OpenQueue, groups: list[Delivery], draws: random.Random) -> int:
    """Puts groups again, in another order; returns how many the queue took for new ones."""
    chosen = draws.sample(groups, min(_AT_ONCE, len(groups)))
    with closing(open_queue()) as queue:
        return queue.producer.put(chosen)


async def late_consumer(open_queue: OpenQueue, draws: random.Random, seconds: float) -> bool:
    """Leases groups, sleeps until it has lost them to the learner, and then says that it trained on them.

    The lease is made to run out rather than waited for.

    Returns:
      Whether it came to that: nothing may have been ready, or nobody wanted the groups in time.
    Raises:
      SecondTakeError: it was believed.
    """
    with closing(open_queue()) as queue:
        count, names = draws.randint(1, 2), list[str]()
        for _ in range(round(_READY_WITHIN_S / _POLL_S)):  # a learner that waits for groups takes them at once
            report = queue.consumer.lease_groups(count, trained_version=-1, max_staleness=_NEVER_STALE)
            names = [group[0].group_id for group in report.groups]
            if names:
                break
            await asyncio.sleep(_POLL_S)
        else:
            return False
        held = _leases(queue, names)
        queue.database.write(
            lambda session: session.execute(
                f"UPDATE groups SET lease_expires_s = 0 WHERE state = 'leased' AND group_id IN ({_marks(names)})", names
            )
        )
        await asyncio.sleep(seconds)
        kept = _leases(queue, names)
        lost = [name for name in names if kept.get(name) != held[name]]
        for name in set(names).difference(lost):
            with suppress(LeaseLostError):
                queue.consumer.reject(name, "not wanted")
        if not lost:
            return False
        progress = queue.admin.progress()
        try:
            queue.consumer.mark_trained(
                lost, completed_steps=progress.completed_steps, trained_version=progress.trained_version
            )
        except LeaseLostError:
            return True
        raise SecondTakeError(f"{lost} were trained on by a consumer that had lost them")


def _leases(queue: TrajectoryQueue, names: list[str]) -> dict[str, int]:
    """Lease tokens of those groups that are leased."""
    query = f"SELECT group_id, lease_token FROM groups WHERE state = 'leased' AND group_id IN ({_marks(names)})"
    return dict(queue.database.read(lambda session: list(session.execute(query, names))))


def _marks(names: list[str]) -> str:
    return ",".join("?" * len(names))


def _read(queue: TrajectoryQueue, query: str) -> list[Any]:
    return queue.database.read(lambda session: list(session.execute(query)))
