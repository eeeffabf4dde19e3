"""The rollout worker: claims prompts as far as the gate allows, has groups played, puts them in the queue.

It wakes when a group has ended, and else every tick to look whether the gate has opened. Whatever moment it is killed
at, its claims are taken up again, by itself under the same name or by others once they ran out; putting a group twice
has no effect, so that every prompt is trained on once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from learner_jax.runtime import StandingWait, Waits, WaitTimeoutError, crash_point
from rewards.contracts import Environment, Problem, Task
from rewards.environments import FeedbackEnvironment
from serving_bridge.access import Keys
from serving_bridge.evaluation import HeldOut, PromptEncoder, VerdictWatch
from serving_bridge.queue import Pace, QueueProducer
from serving_bridge.rollout.episodes import Episode, Origin, Player, make_trajectories
from serving_bridge.rollout.groups import BREAKS, GroupError, complete_group, is_final, within
from serving_bridge.rollout.interval import Interval
from serving_bridge.rollout.sampling import Prefix, Sampler
from serving_bridge.rollout.worker_queue import WorkerQueue
from serving_bridge.routing import Dispatcher, NoReplicaError, ReplicaRegistry, ReplicaRow
from serving_bridge.settings import EvaluationSettings, RolloutSettings
from serving_bridge.vllm import Session, VllmClient, http_session

__all__ = ["NoReplicaError", "RolloutWorker", "RunIdentity"]

Log = Callable[..., None]

#: Between two looks at the registry, per replica: what they serve opens the gate, and each look reads a file of each.
_REGISTRY_S_PER_REPLICA, _MAX_REGISTRY_S = 0.02, 0.25
#: tries of a group before it is given up; requests have tries of their own
_GROUP_TRIES = 2
#: prompts claimed ahead are one for so many groups at once
_AHEAD_SHARE = 4


@dataclass(frozen=True)
class RunIdentity:
    """What makes trajectory ids deterministic."""

    run: str
    group_size: int


@dataclass
class RolloutWorker:
    """One worker process. Claims survive its death; started again under the same name, it finishes them first.

    Attributes:
      name: identifies the worker's claims; unique among workers that run at the same time.
      pace: the staleness gate.
      should_stop: asked every tick; once true, running groups get `rollout.drain_s`, and the rest is handed on.
      environment: plays the episodes; the task itself, in one turn, if None.
      vocab_size: answers with ids from here on are refused; None where it is not known.
      keys: for the replicas' tokens; None where they need none.
      open_session: HTTP.
      rng: spreads retries.
      scoring: threads for rewards, `rollout.reward_threads` of its own if None.
      queue_thread: runs the calls to queue and registry, a thread of its own if None.
      tick_s: between two looks at the gate.
      renew_every_s: between two renewals of the claims.
    """

    name: str
    identity: RunIdentity
    task: Task
    encoder: PromptEncoder
    queue: QueueProducer
    registry: ReplicaRegistry
    settings: RolloutSettings
    evaluation: EvaluationSettings
    pace: Pace
    log: Log
    should_stop: Callable[[], bool]
    environment: Environment | None = None
    vocab_size: int | None = None
    keys: Keys | None = None
    waits: Waits = field(default_factory=Waits)
    open_session: Callable[[], AbstractAsyncContextManager[Session]] = http_session
    rng: random.Random = field(default_factory=random.Random)
    scoring: Executor | None = None
    queue_thread: Executor | None = None
    tick_s: float = 0.05
    renew_every_s: float = 10.0

    async def run(self) -> None:
        """Works until the learner has finished or `should_stop`.

        Raises:
          NoReplicaError: no replica was ready for `rollout.max_wait_s`.
          WaitTimeoutError: the gate or the queue stayed closed for so long.
        """
        async with _started(self) as running:
            await running.work()


@asynccontextmanager
async def _started(worker: RolloutWorker) -> AsyncIterator[_Running]:
    """The worker with its threads, its session and its background tasks; all of them end with the context."""
    threads = worker.settings.reward_threads
    with (
        nullcontext(worker.scoring) if worker.scoring else _threads(threads) as scoring,
        nullcontext(worker.queue_thread) if worker.queue_thread else _threads(1) as queue_thread,
    ):
        async with worker.open_session() as session:
            running = _Running(worker, session, scoring, queue_thread)
            try:
                yield running
            finally:
                await running.end()


def _client(worker: RolloutWorker, row: ReplicaRow, session: Session) -> VllmClient:
    token = worker.keys.token("inference", row.url, row.start) if worker.keys is not None else ""
    return VllmClient(row.url, session, vocab_size=worker.vocab_size, token=token)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are not waited for: a verifier that hangs must not hold up the claims' being handed on."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Running:
    """A worker while it runs."""

    def __init__(self, worker: RolloutWorker, session: Session, scoring: Executor, queue_thread: Executor) -> None:
        self._worker, self._settings = worker, worker.settings
        self._loop = asyncio.get_running_loop()
        self._interval = Interval(worker.log, self._loop.time())
        self._count = self._interval.count
        self._environment = worker.environment or FeedbackEnvironment(worker.task)
        self._origin = Origin(
            run=worker.identity.run,
            group_size=worker.identity.group_size,
            settings=worker.settings,
            reward_version=self._environment.version,
            tokenizer=worker.encoder.tokenizer.fingerprint,
        )
        self._dispatcher = Dispatcher(worker.settings, lambda row: _client(worker, row, session), worker.waits)
        sampler = Sampler(
            self._dispatcher,
            worker.settings,
            worker.encoder.tokenizer.eos_ids,
            count=self._count,
            log=worker.log,
            rng=worker.rng,
        )
        self._verdicts = VerdictWatch(worker.settings.max_failed_verdicts, count=self._count)
        self._player = Player(
            self._environment,
            worker.encoder,
            sampler,
            worker.settings,
            scoring=scoring,
            count=self._count,
            verdicts=self._verdicts,
        )
        self._queue = WorkerQueue(
            worker.queue,
            worker.name,
            thread=queue_thread,
            waits=worker.waits,
            max_wait_s=worker.settings.max_wait_s,
            renew_every_s=worker.renew_every_s,
            count=self._count,
            log=worker.log,
        )
        self._groups: dict[int, asyncio.Task[None]] = {}
        # Prompts claimed ahead take the place of groups that end, without waiting for the queue.
        self._num_ahead = worker.settings.concurrent_groups // _AHEAD_SHARE
        self._places = asyncio.Semaphore(worker.settings.concurrent_groups)
        self._playing: set[int] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._held_out = HeldOut(
            worker.task, worker.encoder, worker.evaluation, worker.settings, scoring=scoring, log=worker.log
        )
        self._is_evaluating = False
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._replicas: list[ReplicaRow] = []
        self._registry_s = self._progress_s = float("-inf")
        self._completed_steps = -1
        self._unserved = self._standing("a ready vLLM replica", on="fleet", error=NoReplicaError)
        self._closed = self._standing("the staleness gate to open", on="learner", error=WaitTimeoutError)

    def _standing(self, what: str, *, on: str, error: type[Exception]) -> StandingWait:
        limit_s = self._settings.max_wait_s
        return StandingWait(self._worker.waits, what, on=on, limit_s=limit_s, setting="rollout.max_wait_s", error=error)

    async def work(self) -> None:
        self._in_background(self._dispatcher.watch())
        self._start(await self._queue.resume())
        while not self._worker.should_stop():
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
        self._unserved.end()
        await self._queue.put()
        await self._write_interval(force=True)

    async def _look_around(self) -> bool:
        """Learns of replicas and of the learner's progress; returns whether the run has finished."""
        now = self._loop.time()
        if now >= self._registry_s:
            self._replicas = await self._queue.call("the list of replicas", self._worker.registry.ready)
            self._registry_s = now + min(_MAX_REGISTRY_S, _REGISTRY_S_PER_REPLICA * len(self._replicas))
            self._dispatcher.update(self._replicas)
            self._evaluate_if_due()
        self._unserved.look(not self._replicas, self._known_replicas)
        if now >= self._progress_s + self._worker.tick_s:
            self._progress_s = now
            progress = await self._queue.progress()
            if progress.finished:
                return True
            if progress.completed_steps != self._completed_steps:
                self._completed_steps = progress.completed_steps
                self._closed.progressed()
        return False

    def _known_replicas(self) -> str:
        rows = self._worker.registry.replicas()
        return f"known replicas: {[f'{row.name} is {row.state}' for row in rows] or 'none'}"

    async def _claim(self) -> None:
        free = self._settings.concurrent_groups + self._num_ahead - len(self._groups)
        if self._replicas and free > 0 and not self._queue.is_full:
            served = min(replica.step for replica in self._replicas)
            self._start(await self._queue.claim(free, self._worker.pace, served_step=served))
        self._closed.look(bool(self._replicas) and not self._groups and not self._queue.is_full)

    async def _keep_up(self) -> None:
        """What has to be done again and again while groups run; then sleeps until there is something to do."""
        for index in await self._queue.renew(list(self._groups)):
            if (group := self._groups.get(index)) is not None:
                self._count["lost_claims"] += 1
                group.cancel()
        await self._write_interval()
        before = self._loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._worker.tick_s):
                await self._wake.wait()
        self._wake.clear()
        if not self._playing:
            self._interval.idle_s += self._loop.time() - before
        if self._failure is not None:
            raise self._failure

    async def _drain(self) -> None:
        """Asked to stop: lets groups end for a while, and hands on the claims of those that did not."""
        for index, group in self._groups.items():
            if index not in self._playing:
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
                self._groups[index] = self._in_background(self._group(index))
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

    async def _group(self, index: int) -> None:
        problem = self._worker.task.problem("train", index)
        prompt = self._worker.encoder.encode(problem)
        if prompt is None:
            self._count["skipped_prompts"] += 1
            await self._queue.skip(index)
            return
        for attempt in range(1, _GROUP_TRIES + 1):
            try:
                async with self._place(index):
                    episodes = await self._play(problem, prompt)
                if self._teaches(index, episodes):
                    self._accept(index, episodes)
                else:
                    await self._queue.skip(index)
                return
            except (*BREAKS, GroupError) as error:
                self._worker.log("retry", prompt_index=index, attempt=attempt, error=str(error) or repr(error))
                if is_final(error):
                    break
        self._count["failed_groups"] += 1
        await self._queue.skip(index)

    @asynccontextmanager
    async def _place(self, index: int) -> AsyncIterator[None]:
        """One of the places for groups that are played at the same time."""
        async with self._places:
            self._playing.add(index)
            try:
                yield
            finally:
                self._playing.discard(index)

    async def _play(self, problem: Problem, prompt: Sequence[int]) -> list[Episode]:
        """A complete group; one request where all of it can be known beforehand."""
        size, timeout_s = self._origin.group_size, self._settings.episode_timeout_s
        if self._environment.max_turns == 1 and not self._settings.spare_samples:
            return await within(self._player.play_together(problem, prompt, size), timeout_s, self._count)
        shared = Prefix()
        return await complete_group(
            lambda _: self._player.play(problem, prompt, shared),
            size=size,
            spares=self._settings.spare_samples,
            timeout_s=timeout_s,
            count=self._count,
        )

    def _teaches(self, index: int, episodes: Sequence[Episode]) -> bool:
        """Whether answers are left to compare; else the group's prompt is given up, and another takes its place."""
        judged = sum(episode.is_judged for episode in episodes)
        if judged >= min(2, len(episodes)):
            return True
        self._count["unjudged_groups"] += 1
        self._worker.log("unjudged_group", prompt_index=index, answers=len(episodes), judged=judged)
        return False

    def _accept(self, index: int, episodes: Sequence[Episode]) -> None:
        crash_point("sampled")
        self._queue.add(index, make_trajectories(self._origin, index, episodes))
        self._count["groups"] += 1
        self._count["tokens"] += sum(episode.num_sampled for episode in episodes)
        self._count["mixed_version_answers"] += sum(episode.num_versions > 1 for episode in episodes)

    def _evaluate_if_due(self) -> None:
        if not self._replicas or self._is_evaluating:
            return
        replica = min(self._replicas, key=lambda replica: replica.step)
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
        self._interval.write(
            now,
            running=len(self._playing),
            waiting_requests=self._dispatcher.num_waiting,
            served_version=min((replica.version for replica in self._replicas), default=None),
            replicas={name: {"in_flight": f, "limit": m} for name, (f, m) in self._dispatcher.loads().items()},
            cuts=self._dispatcher.take_cuts(),
            **self._verdicts.take(),
        )
        if totals := dict(self._dispatcher.totals()):
            report = self._worker.registry.report_requests
            try:
                await self._queue.call("the report of requests", report, self._worker.name, totals)
            except OSError as error:  # figures for the controller: the next report has these too
                self._worker.log("retry", error=f"requests can't be reported: {error}")

    async def _cancel(self) -> None:
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
