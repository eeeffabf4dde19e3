"""The rollout worker: claims prompts as far as the gate allows, has groups played, puts them in the queue.

It wakes when a group has ended, and else every tick to look whether the gate has opened. Whatever moment it is killed
at, its claims are taken up again, by itself under the same name or by others once they ran out; putting a group twice
has no effect, so that every prompt is trained on once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field

from learner_jax.runtime import NO_SPANS, Spans, Waits
from rewards.contracts import AsyncEnvironment, Environment, Task
from rewards.environments import AgentEnvironment, FeedbackEnvironment
from serving_bridge.access import Keys
from serving_bridge.evaluation import HeldOut, PromptEncoder, VerdictWatch
from serving_bridge.queue import Delay, Pace, QueueProducer, QueueRewards
from serving_bridge.rollout.agent_player import AgentPlayer
from serving_bridge.rollout.delayed import DelayedRewards
from serving_bridge.rollout.group_maker import GroupMaker
from serving_bridge.rollout.heldout_episodes import HeldOutEpisodes, plays_episodes
from serving_bridge.rollout.interval import Interval
from serving_bridge.rollout.known_replicas import KnownReplicas
from serving_bridge.rollout.measured import LeaveOut, MeasuredCurriculum
from serving_bridge.rollout.player import Player
from serving_bridge.rollout.running import RunningRollouts
from serving_bridge.rollout.sampling import Sampler
from serving_bridge.rollout.trajectories import Origin
from serving_bridge.rollout.worker_queue import WorkerQueue
from serving_bridge.routing import Dispatcher, ReplicaRegistry, ReplicaRow
from serving_bridge.settings import EvaluationSettings, RolloutSettings
from serving_bridge.vllm import Session, VllmClient, http_session

Log = Callable[..., None]


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
      hold: why training must wait, asked every tick; while it gives a reason, waiting for the learner has no bound.
      environment: plays the episodes; the task itself, in one turn, if None.
      heldout_environment: plays held-out problems, if others than training's; `environment` if None.
      leave_out: by the label of a source, which of its problems are passed over; measured in `queue`.
      rewards: the queue, where rewards come later; needed with `delays`.
      delays: by the label of a source, how long its groups wait for rewards that come later.
      vocab_size: answers with ids from here on are refused; None where it is not known.
      keys: for the replicas' tokens; None where they need none.
      open_session: HTTP.
      rng: spreads retries.
      scoring: threads for rewards, `rollout.reward_threads` of its own if None.
      queue_thread: runs the calls to queue and registry, a thread of its own if None.
      tick_s: between two looks at the gate.
      renew_every_s: between two renewals of the claims.
      spans: told how long each group's parts take.
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
    hold: Callable[[], str | None] | None = None
    environment: Environment | AsyncEnvironment | None = None
    heldout_environment: Environment | AsyncEnvironment | None = None
    leave_out: Mapping[str, LeaveOut] = field(default_factory=dict)
    rewards: QueueRewards | None = None
    delays: Mapping[str, Delay] = field(default_factory=dict)
    vocab_size: int | None = None
    keys: Keys | None = None
    waits: Waits = field(default_factory=Waits)
    open_session: Callable[[], AbstractAsyncContextManager[Session]] = http_session
    rng: random.Random = field(default_factory=random.Random)
    scoring: Executor | None = None
    queue_thread: Executor | None = None
    tick_s: float = 0.05
    renew_every_s: float = 10.0
    spans: Spans = NO_SPANS

    async def run(self) -> None:
        """Works until the learner has finished or `should_stop`.

        Raises:
          NoReplicaError: no replica was ready for `rollout.max_wait_s`.
          WaitTimeoutError: the gate or the queue stayed closed for so long.
        """
        async with _started(self) as running:
            await running.work()


@asynccontextmanager
async def _started(worker: RolloutWorker) -> AsyncIterator[RunningRollouts]:
    """The worker with its threads, its session and its background tasks; all of them end with the context."""
    threads = worker.settings.reward_threads
    with (
        nullcontext(worker.scoring) if worker.scoring else _threads(threads) as scoring,
        nullcontext(worker.queue_thread) if worker.queue_thread else _threads(1) as queue_thread,
    ):
        async with worker.open_session() as session:
            running, player = _assembled(worker, session, scoring, queue_thread)
            async with player if isinstance(player, AgentPlayer) else nullcontext():
                try:
                    yield running
                finally:
                    await running.end()


def _assembled(
    worker: RolloutWorker, session: Session, scoring: Executor, queue_thread: Executor
) -> tuple[RunningRollouts, Player | AgentPlayer]:
    """The parts of a running worker; their counters are those of one line of metrics."""
    settings, encoder = worker.settings, worker.encoder
    interval = Interval(worker.log, asyncio.get_running_loop().time())
    environment = worker.environment or FeedbackEnvironment(worker.task)
    origin = Origin(
        run=worker.identity.run,
        group_size=worker.identity.group_size,
        settings=settings,
        reward_version=environment.version,
        tokenizer=encoder.tokenizer.fingerprint,
    )
    dispatcher = Dispatcher(settings, lambda row: _client(worker, row, session), worker.waits)
    sampler = Sampler(
        dispatcher,
        settings,
        encoder.tokenizer.eos_ids,
        count=interval.count,
        log=worker.log,
        rng=worker.rng,
        spans=worker.spans,
    )
    verdicts = VerdictWatch(settings.max_failed_verdicts, count=interval.count)
    player = _player(worker, environment, sampler, scoring, interval, verdicts)
    queue = _queue(worker, interval, queue_thread)
    replicas = KnownReplicas(
        worker.registry,
        dispatcher,
        queue,
        worker=worker.name,
        max_wait_s=settings.max_wait_s,
        waits=worker.waits,
        log=worker.log,
    )
    delayed = (
        DelayedRewards(worker.rewards, worker.delays, queue, count=interval.count)
        if worker.rewards is not None and worker.delays
        else None
    )
    groups = GroupMaker(
        worker.task,
        encoder,
        player,
        queue,
        origin,
        places=settings.concurrent_groups,
        count=interval.count,
        sources=interval.sources,
        log=worker.log,
        spans=worker.spans,
        curriculum=MeasuredCurriculum(worker.leave_out, queue, run=worker.identity.run) if worker.leave_out else None,
        delayed=delayed,
    )
    held_out = _held_out(worker, worker.heldout_environment or environment, scoring)
    running = RunningRollouts(
        settings,
        queue,
        replicas,
        dispatcher,
        groups,
        held_out,
        pace=worker.pace,
        interval=interval,
        verdicts=verdicts,
        waits=worker.waits,
        should_stop=worker.should_stop,
        hold=worker.hold,
        tick_s=worker.tick_s,
        delayed=delayed,
    )
    return running, player


def _player(
    worker: RolloutWorker,
    environment: Environment | AsyncEnvironment,
    sampler: Sampler,
    scoring: Executor,
    interval: Interval,
    verdicts: VerdictWatch,
) -> Player | AgentPlayer:
    settings, encoder, count = worker.settings, worker.encoder, interval.count
    if isinstance(environment, AgentEnvironment):
        return AgentPlayer(environment, encoder, sampler, settings, count=count, verdicts=verdicts)
    return Player(
        environment,
        encoder,
        sampler,
        settings,
        scoring=scoring,
        count=count,
        verdicts=verdicts,
        spans=worker.spans,
    )


def _held_out(worker: RolloutWorker, environment: Environment | AsyncEnvironment, scoring: Executor) -> HeldOut:
    encoder, evaluation, settings = worker.encoder, worker.evaluation, worker.settings
    play = (
        HeldOutEpisodes(environment, encoder, evaluation, settings, scoring=scoring)
        if plays_episodes(environment)
        else None
    )
    return HeldOut(worker.task, encoder, evaluation, settings, scoring=scoring, log=worker.log, play=play)


def _queue(worker: RolloutWorker, interval: Interval, thread: Executor) -> WorkerQueue:
    return WorkerQueue(
        worker.queue,
        worker.name,
        thread=thread,
        waits=worker.waits,
        max_wait_s=worker.settings.max_wait_s,
        renew_every_s=worker.renew_every_s,
        count=interval.count,
        log=worker.log,
        spans=worker.spans,
    )


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
