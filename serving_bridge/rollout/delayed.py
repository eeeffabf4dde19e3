"""Groups whose rewards come later: which wait for how long, and the look after those whose window has closed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from serving_bridge.queue import Delay, QueueRewards
from serving_bridge.rollout.episodes import Episode
from serving_bridge.rollout.worker_queue import WorkerQueue

#: Windows are minutes and more; a look costs one read.
_EVERY_S = 2.0


class DelayedRewards:
    """What a worker has to do for rewards that come later.

    Args:
      rewards: the run's queue, from the side of those who bring rewards.
      delays: by the label of the source; "" of a task with one.
      count: "released_groups" (also those that are released here with a score for rewards that did not come) and
        "unrewarded_groups" are counted here.
    """

    def __init__(
        self, rewards: QueueRewards, delays: Mapping[str, Delay], queue: WorkerQueue, *, count: Counter[str]
    ) -> None:
        self._rewards, self._delays, self._queue, self._count = rewards, delays, queue, count
        self._looked_s = float("-inf")

    def delay(self, episodes: Sequence[Episode]) -> Delay | None:
        """How long a group waits; None if all that can be known of it is known."""
        if not any(episode.is_pending for episode in episodes):
            return None
        return self._delays[episodes[0].problem.source]

    async def settle(self) -> None:
        """Has groups decided whose window has closed, every few seconds."""
        now = asyncio.get_running_loop().time()
        if now < self._looked_s + _EVERY_S:
            return
        self._looked_s = now
        settled = await self._queue.call("the end of waits for rewards", self._rewards.settle)
        self._count["released_groups"] += len(settled.released)
        self._count["unrewarded_groups"] += len(settled.dropped)
