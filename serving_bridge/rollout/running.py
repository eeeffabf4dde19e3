"""A rollout worker while it runs: as many groups at once as gate, queue and replicas allow, and an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from learner_jax.runtime import StandingWait, Waits, WaitTimeoutError
from serving_bridge.evaluation import HeldOut, VerdictWatch
from serving_bridge.queue import Pace
from serving_bridge.rollout.delayed import DelayedRewards
from serving_bridge.rollout.group_maker import GroupMaker
from serving_bridge.rollout.interval import Interval
from serving_bridge.rollout.known_replicas import KnownReplicas
from serving_bridge.rollout.worker_queue import WorkerQueue
from serving_bridge.routing import Dispatcher, ReplicaRow
from serving_bridge.settings import RolloutSettings

#: prompts claimed ahead are one for so many groups at once
_AHEAD_SHARE = 4


class RunningRollouts:
    """Claims prompts, has groups made of them, and puts the groups, until told to stop or the run has finished.

    Args:
      pace: the staleness gate.
      should_stop: asked every tick.
      hold: why training must wait, asked every tick; must answer at once. None where it never has to.
      tick_s: between two looks at the gate.
      delayed: of a task with rewards that come later.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        queue: WorkerQueue,
        replicas: KnownReplicas,
        dispatcher: Dispatcher,
        groups: GroupMaker,
        held_out: HeldOut,
        *,
        pace: Pace,
        interval: Interval,
        verdicts: VerdictWatch,
        waits: Waits,
        should_stop: Callable[[], bool],
        tick_s: float,
        hold: Callable[[], str | None] | None = None,
        delayed: DelayedRewards | None = None,
    ) -> None:
        self._settings = settings
        self._queue, self._replicas, self._dispatcher = queue, replicas, dispatcher
        self._maker, self._held_out = groups, held_out
        self._pace, self._interval, self._verdicts = pace, interval, verdicts
        self._should_stop, self._tick_s = should_stop, tick_s
        self._delayed, self._hold = delayed, hold
        self._loop = asyncio.get_running_loop()
        self._groups: dict[int, asyncio.Task[None]] = {}
        # Prompts claimed ahead take the place of groups that end, without waiting for the queue.
        self._num_ahead = settings.concurrent_groups // _AHEAD_SHARE
        self._background: set[asyncio.Task[None]] = set()
        self._is_evaluating = False
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._progress_s = float("-inf")
        self._completed_steps = -1
        self._closed = StandingWait(
            waits,
            "the staleness gate to open",
            on="learner",
            limit_s=settings.max_wait_s,
            setting="rollout.max_wait_s",
            error=WaitTimeoutError,
        )

    async def work(self) -> None:
        """Returns once the run has finished, or all is handed on after a stop."""
        self._in_background(self._dispatcher.watch())
        self._start(await self._queue.resume())
        while not self._should_stop():
            if await self._look_around():
                return
            await self._claim()  # first: a group counts until it is put, so that putting makes no room
            await self._queue.put()
            await self._keep_up()
        await self._drain()

    async def end(self) -> None:
        """Cancels what runs, puts what has ended; claims stay."""
        await self._cancel()
        self._closed.end()
        self._replicas.end()
        await self._queue.put()
        await self._write_interval(force=True)

    async def _look_around(self) -> bool:
        """Learns of replicas and of the learner's progress; returns whether the run has finished."""
        now = self._loop.time()
        if self._hold is not None and self._hold() is not None:
            # Somebody decides when the learner goes on: how long that takes says nothing of its health.
            self._closed.progressed()
            self._queue.wait_longer()
        if await self._replicas.look(now):
            self._evaluate_if_due()
        if now >= self._progress_s + self._tick_s:
            self._progress_s = now
            progress = await self._queue.progress()
            if progress.finished:
                return True
            if progress.completed_steps != self._completed_steps:
                self._completed_steps = progress.completed_steps
                self._closed.progressed()
        return False

    async def _claim(self) -> None:
        sampled = len(self._groups) - len(self._maker.scoring)
        free = self._settings.concurrent_groups + self._num_ahead - sampled
        ready = self._replicas.ready
        if ready and free > 0 and not self._queue.is_full:
            served = min(replica.step for replica in ready)
            self._start(await self._queue.claim(free, self._pace, served_step=served))
        self._closed.look(bool(ready) and not self._groups and not self._queue.is_full)

    async def _keep_up(self) -> None:
        """What has to be done again and again while groups run; then sleeps until there is something to do."""
        if self._delayed is not None:
            await self._delayed.settle()
        for index in await self._queue.renew(list(self._groups)):
            if (group := self._groups.get(index)) is not None:
                self._interval.count["lost_claims"] += 1
                group.cancel()
        await self._write_interval()
        before = self._loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._tick_s):
                await self._wake.wait()
        self._wake.clear()
        if not self._maker.playing:
            self._interval.idle_s += self._loop.time() - before
        if self._failure is not None:
            raise self._failure

    async def _drain(self) -> None:
        """Asked to stop: lets groups end for a while, and hands on the claims of those that did not."""
        for index, group in self._groups.items():
            if index not in self._maker.playing:
                group.cancel()
        until = self._loop.time() + self._settings.drain_s
        while (self._groups or self._queue.is_full) and self._loop.time() < until:
            await self._queue.put()
            await self._keep_up()
        await self._cancel()
        await self._queue.put()
        await self._queue.hand_on()

    def _start(self, prompt_indices: Sequence[int]) -> None:
        for index in prompt_indices:
            if index not in self._groups:  # else a claim of this worker's own that ran out, and was claimed again
                self._groups[index] = self._in_background(self._maker.make(index))
                self._groups[index].add_done_callback(partial(self._forget, index))

    def _forget(self, index: int, _: asyncio.Task[None]) -> None:
        del self._groups[index]

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        self._wake.set()

    def _evaluate_if_due(self) -> None:
        if not self._replicas.ready or self._is_evaluating:
            return
        replica = min(self._replicas.ready, key=lambda replica: replica.step)
        if self._held_out.is_due(replica.step):
            self._is_evaluating = True
            self._in_background(self._evaluate(replica))

    async def _evaluate(self, replica: ReplicaRow) -> None:
        try:
            await self._held_out.evaluate(self._dispatcher.client(replica), replica)
        finally:
            self._is_evaluating = False

    async def _write_interval(self, *, force: bool = False) -> None:
        now = self._loop.time()
        if not self._interval.is_due(now) and not force:
            return
        figures = self._replicas.figures()
        self._interval.write(now, running=len(self._maker.playing), **figures, **self._verdicts.take())
        await self._replicas.report_requests()

    async def _cancel(self) -> None:
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
