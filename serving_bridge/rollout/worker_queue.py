"""A rollout worker's side of the queue: claims renewed in time, groups put in batches, no call in the event loop.

All calls run one after the other in one thread: each may wait for a disk or for another process. While the queue is
full, finished groups are kept and offered again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

from learner_jax.contracts import ContractError, Trajectory
from learner_jax.runtime import NO_SPANS, Spans, StandingWait, Waits, WaitTimeoutError
from serving_bridge.queue import Delay, Pace, ProblemOutcome, Progress, QueueFullError, QueueProducer

T = TypeVar("T")
Log = Callable[..., None]


class WorkerQueue:
    """One worker's claims and groups.

    Args:
      worker: name of its claims.
      thread: runs the calls; of one thread, or of the caller's in simulations.
      max_wait_s: bound on each call, and on the queue being full.
      renew_every_s: well below the time for which the queue lets claims be.
      count: "queue_full_waits" and "failed_groups" are counted here.
    """

    def __init__(
        self,
        queue: QueueProducer,
        worker: str,
        *,
        thread: Executor,
        waits: Waits,
        max_wait_s: float,
        renew_every_s: float,
        count: Counter[str],
        log: Log,
        spans: Spans = NO_SPANS,
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._thread = thread
        self._waits = waits
        self._max_wait_s = max_wait_s
        self._renew_every_s = renew_every_s
        self._count = count
        self._log, self._spans = log, spans
        self._finished: list[tuple[int, list[Trajectory]]] = []
        self._outcomes: dict[int, ProblemOutcome] = {}
        self._delays: dict[int, Delay] = {}
        self._renewed_s = self._offer_from_s = float("-inf")
        self._full = StandingWait(
            waits,
            "room in the queue",
            on="learner",
            limit_s=max_wait_s,
            setting="rollout.max_wait_s",
            error=WaitTimeoutError,
        )

    @property
    def is_full(self) -> bool:
        """Whether finished groups are kept back because the queue takes no more."""
        return self._offer_from_s > float("-inf")

    def add(
        self,
        index: int,
        group: list[Trajectory],
        outcome: ProblemOutcome | None = None,
        delay: Delay | None = None,
    ) -> None:
        """A group for the next `put`, what it says of its problem, and how long it waits if its rewards come later."""
        self._finished.append((index, group))
        if delay is not None:
            self._delays[index] = delay
        if outcome is not None:
            self._outcomes[index] = outcome

    async def alike_groups(self, key: int) -> int:
        """Groups in a row of a problem, up to the latest, whose answers were all right or all wrong."""
        return await self.call("what is known of a problem", self._queue.alike_groups, key)

    async def resume(self) -> list[int]:
        """Claims of an earlier life of this worker."""
        return await self.call("earlier claims", self._queue.resume_claims, self._worker)

    async def claim(self, limit: int, pace: Pace, *, served_step: int) -> list[int]:
        return await self.call(
            "prompts",
            lambda: self._queue.claim_prompts(self._worker, limit, pace, served_step=served_step),
        )

    async def progress(self) -> Progress:
        return await self.call("the run's progress", self._queue.progress)

    async def skip(self, index: int) -> None:
        """Gives a claim up for good."""
        await self.call("the end of a claim", lambda: self._queue.release_claim(index, worker=self._worker))

    def wait_longer(self) -> None:
        """Begins the bound of the wait for room anew, if that stands."""
        self._full.progressed()

    async def renew(self, held: Sequence[int]) -> set[int]:
        """Renews the claims if it is time; returns those of the `held` that are no longer this worker's."""
        now = asyncio.get_running_loop().time()
        if now < self._renewed_s + self._renew_every_s:
            return set()
        self._renewed_s = now
        kept = await self.call("the renewal of claims", self._queue.renew_claims, self._worker)
        return set(held).difference(kept)

    async def hand_on(self) -> None:
        """Lets other workers take this one's claims at once."""
        await self.call("the end of all claims", self._queue.hand_on_claims, self._worker)

    async def put(self) -> None:
        """Puts all finished groups in one transaction; keeps them while the queue is full, up to the bound."""
        loop = asyncio.get_running_loop()
        if not self._finished or loop.time() < self._offer_from_s:
            return
        batch, self._finished = self._finished, []
        try:
            await self._put(batch)
        except QueueFullError as error:
            self._finished = batch + self._finished
            self._count["queue_full_waits"] += 1
            self._offer_from_s = loop.time() + error.retry_after_s
            message = str(error)
            self._full.look(True, lambda: message)
        except BaseException:
            self._finished = batch + self._finished
            raise
        else:
            self._offer_from_s = float("-inf")
            self._full.end()

    async def _put(self, batch: Sequence[tuple[int, list[Trajectory]]]) -> None:
        try:
            outcomes = {index: self._outcomes[index] for index, _ in batch if index in self._outcomes}
            put = partial(self._queue.put, batch, worker=self._worker)
            if outcomes:
                put = partial(put, outcomes=outcomes)
            if delays := {index: self._delays[index] for index, _ in batch if index in self._delays}:
                put = partial(put, delays=delays)
            began_s = time.time()
            await self.call(f"the acceptance of {len(batch)} groups", put)
            self._spans.past(
                [group[0].group_id for _, group in batch if group], "put", began_s, time.time(), groups=len(batch)
            )
            for index, _ in batch:
                self._outcomes.pop(index, None)
                self._delays.pop(index, None)
        except ContractError as error:
            if len(batch) > 1:
                for entry in batch:  # the others are not to suffer
                    await self._put([entry])
                return
            index = batch[0][0]
            self._outcomes.pop(index, None)
            self._delays.pop(index, None)
            self._count["failed_groups"] += 1
            self._log("retry", prompt_index=index, error=f"given up: {error}")
            await self.skip(index)

    async def call(self, what: str, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)` in the thread, within the bound."""
        with self._waits.waiting(
            what, on="queue", limit_s=self._max_wait_s, setting="rollout.max_wait_s", hint="its disk or server hangs"
        ) as wait:
            async with wait.bound():
                return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
