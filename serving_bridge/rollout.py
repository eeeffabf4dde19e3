"""The rollout worker: claims prompts as far as the gate allows, samples groups, scores them, puts them in the queue."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from learner_jax.contracts import NOT_SAMPLED, Trajectory
from rewards.protocol import Problem, RewardRequest, RewardResult, Task
from serving_bridge.config import EvaluationSettings, RolloutSettings
from serving_bridge.evaluation import PromptEncoder, evaluate
from serving_bridge.queue import TrajectoryQueue
from serving_bridge.registry import ReplicaRegistry, ReplicaRow
from serving_bridge.staleness import Pace
from serving_bridge.vllm_client import Aborted, Completion, ReplicaError, VllmClient

Log = Callable[..., None]

_TICK_S = 0.02
_FIRST_RETRY_S = 0.2
_METRICS_EVERY_S = 1.0


class NoReplicaError(RuntimeError):
    """No replica took requests within the bound."""


@dataclass(frozen=True)
class RunIdentity:
    """What makes trajectory ids deterministic."""

    run: str
    group_size: int


@dataclass
class _Interval:
    """Counters since the last line of metrics."""

    started_s: float
    groups: int = 0
    tokens: int = 0
    idle_s: float = 0.0
    retries: int = 0
    mixed_version_answers: int = 0
    skipped_prompts: int = 0
    failed_groups: int = 0
    reward_errors: int = 0


def make_trajectories(
    identity: RunIdentity,
    index: int,
    problem: Problem,
    prompt: Sequence[int],
    completions: Sequence[Completion],
    results: Sequence[RewardResult],
    *,
    settings: RolloutSettings,
    task_version: str,
) -> list[Trajectory]:
    """One trajectory per completion; ids never change between tries, token ids are exactly the sampler's."""
    group_id = f"{identity.run}/{index}"
    return [
        Trajectory(
            trajectory_id=f"{group_id}/{sample}",
            group_id=group_id,
            group_size=identity.group_size,
            prompt={"index": index, "question": problem.question},
            tokens=np.concatenate([np.asarray(prompt, np.int32), completion.tokens]),
            loss_mask=_after_prompt(prompt, np.ones(len(completion.tokens), np.bool_)),
            behavior_logprobs=_after_prompt(prompt, completion.logprobs),
            policy_version=_after_prompt(prompt, completion.policy_version, fill=NOT_SAMPLED),
            turn=np.zeros(len(prompt) + len(completion.tokens), np.int32),
            rewards=_reward_at_end(len(prompt) + len(completion.tokens), result.score),
            reward_parts=dict(result.parts),
            finish_reason=completion.finish_reason,  # type: ignore[arg-type]
            sampling={"temperature": settings.temperature, "max_tokens": settings.max_tokens},
            reward_version=task_version,
        )
        for sample, (completion, result) in enumerate(zip(completions, results, strict=True))
    ]


def _score_all(task: Task, requests: Sequence[RewardRequest]) -> list[RewardResult]:
    return [task.score(request) for request in requests]


def _after_prompt(prompt: Sequence[int], values: np.ndarray, fill: float = 0) -> np.ndarray:
    return np.concatenate([np.full(len(prompt), fill, values.dtype), values])


def _reward_at_end(length: int, score: float) -> np.ndarray:
    rewards = np.zeros(length, np.float32)
    rewards[-1] = score
    return rewards


@dataclass
class RolloutWorker:
    """One worker process. Claims survive its death; started again under the same name, it finishes them first.

    Attributes:
      name: identifies the worker's claims; unique among workers that run at the same time.
      pace: the staleness gate.
      should_stop: asked every tick.
    """

    name: str
    identity: RunIdentity
    task: Task
    encoder: PromptEncoder
    queue: TrajectoryQueue
    registry: ReplicaRegistry
    settings: RolloutSettings
    evaluation: EvaluationSettings
    pace: Pace
    log: Log
    should_stop: Callable[[], bool]
    _clients: dict[str, VllmClient] = field(default_factory=dict, init=False)
    _in_flight: Counter[str] = field(default_factory=Counter, init=False)
    _finished: list[tuple[int, list[Trajectory]]] = field(default_factory=list, init=False)
    _running: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _failure: BaseException | None = field(default=None, init=False)
    _next_evaluation_step: int = field(default=0, init=False)
    _evaluation_task: asyncio.Task[None] | None = field(default=None, init=False)

    async def run(self) -> None:
        """Works until the learner has finished or `should_stop`.

        Raises:
          NoReplicaError: no replica was ready for `max_wait_s`.
        """
        self._interval = _Interval(time.monotonic())
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            self._session = session
            try:
                self._start(self.queue.resume_claims(self.name))
                await self._loop()
            finally:
                await self._cancel_running()
                self._flush()
                self._write_interval(force=True)

    async def _loop(self) -> None:
        last_ready = last_tick = time.monotonic()
        while not self.should_stop() and not self.queue.progress().finished:
            if self._failure is not None:
                raise self._failure
            replicas = self.registry.ready()
            now = time.monotonic()
            last_ready = now if replicas else last_ready
            if now - last_ready > self.settings.max_wait_s:
                raise NoReplicaError(
                    f"no vLLM replica was ready for {now - last_ready:.0f} s (rollout.max_wait_s); known replicas: "
                    f"{[f'{r.name} is {r.state}' for r in self.registry.replicas()] or 'none'}"
                )
            if replicas:
                served = min(replica.step for replica in replicas)
                free = self.settings.concurrent_groups - len(self._running)
                if free > 0:
                    self._start(self.queue.claim_prompts(self.name, free, self.pace, served_step=served))
                self._maybe_evaluate(replicas)
            if not self._running:
                self._interval.idle_s += now - last_tick
            last_tick = now
            self._flush()
            self._write_interval()
            if self._running:
                await asyncio.wait(self._running, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(_TICK_S)

    def _start(self, prompt_indices: Sequence[int]) -> None:
        for index in prompt_indices:
            running = asyncio.create_task(self._group(index))
            self._running.add(running)
            running.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error

    async def _group(self, index: int) -> None:
        problem = self.task.problem("train", index)
        prompt = self.encoder.encode(problem)
        if prompt is None:
            self._interval.skipped_prompts += 1
            self.queue.release_claim(index)
            return
        for attempt in range(self.settings.max_attempts):
            try:
                completions = await self._sample(prompt)
            except ReplicaError as error:
                self._interval.retries += 1
                self.log("retry", prompt_index=index, attempt=attempt, error=str(error))
                if not error.retryable:
                    break
                await asyncio.sleep(_FIRST_RETRY_S * 2**attempt)
                continue
            requests = [
                RewardRequest(problem, self.encoder.tokenizer.decode(c.tokens.tolist()), c.finish_reason)
                for c in completions
            ]
            results = await asyncio.to_thread(_score_all, self.task, requests)
            self._accept(index, problem, prompt, completions, results)
            return
        self._interval.failed_groups += 1
        self.queue.release_claim(index)

    def _accept(
        self,
        index: int,
        problem: Problem,
        prompt: Sequence[int],
        completions: Sequence[Completion],
        results: Sequence[RewardResult],
    ) -> None:
        group = make_trajectories(
            self.identity,
            index,
            problem,
            prompt,
            completions,
            results,
            settings=self.settings,
            task_version=self.task.version,
        )
        self._finished.append((index, group))
        self._interval.groups += 1
        self._interval.tokens += sum(len(c.tokens) for c in completions)
        self._interval.mixed_version_answers += sum(len(np.unique(c.policy_version)) > 1 for c in completions)
        self._interval.reward_errors += sum(result.verdict == "error" for result in results)

    async def _sample(self, prompt: Sequence[int]) -> list[Completion]:
        """One group from the least loaded ready replica."""
        replica = await self._pick_replica()
        self._in_flight[replica.name] += 1
        try:
            return await self._client(replica).generate(
                prompt,
                n=self.identity.group_size,
                max_tokens=self.settings.max_tokens,
                temperature=self.settings.temperature,
                stop_token_ids=self.encoder.tokenizer.eos_ids,
                timeout_s=self.settings.request_timeout_s,
            )
        finally:
            self._in_flight[replica.name] -= 1

    async def _pick_replica(self) -> ReplicaRow:
        deadline = time.monotonic() + self.settings.max_wait_s
        while not (replicas := self.registry.ready()):
            if time.monotonic() > deadline:
                raise Aborted(f"no replica was ready for {self.settings.max_wait_s:.0f} s")
            await asyncio.sleep(_TICK_S)
        return min(replicas, key=lambda replica: self._in_flight[replica.name])

    def _client(self, replica: ReplicaRow) -> VllmClient:
        if replica.url not in self._clients:
            self._clients[replica.url] = VllmClient(replica.url, self._session)
        return self._clients[replica.url]

    def _maybe_evaluate(self, replicas: Sequence[ReplicaRow]) -> None:
        """Starts a held-out evaluation when the fleet has reached the next step that asks for one."""
        replica = min(replicas, key=lambda replica: replica.step)
        busy = self._evaluation_task is not None and not self._evaluation_task.done()
        if not self.evaluation.every or busy or replica.step < self._next_evaluation_step:
            return
        self._next_evaluation_step = (replica.step // self.evaluation.every + 1) * self.evaluation.every
        self._evaluation_task = asyncio.create_task(self._evaluate(replica))

    async def _evaluate(self, replica: ReplicaRow) -> None:
        try:
            result = await evaluate(
                self._client(replica),
                self.task,
                self.encoder,
                num_problems=self.evaluation.num_problems,
                max_tokens=self.evaluation.max_tokens or self.settings.max_tokens,
                num_samples=0,
                timeout_s=self.settings.request_timeout_s,
                temperature=self.evaluation.temperature,
            )
        except ReplicaError as error:
            self.log("retry", error=f"held-out evaluation at version {replica.version}: {error}")
            return
        fields: dict[str, Any] = {"accuracy": result.accuracy, "mean_score": result.mean_score}
        self.log("heldout", version=replica.version, step=replica.step, num_problems=result.num_problems, **fields)

    def _flush(self) -> None:
        finished, self._finished = self._finished, []
        if finished:
            self.queue.put(finished)

    def _write_interval(self, *, force: bool = False) -> None:
        now = time.monotonic()
        seconds = now - self._interval.started_s
        if seconds < _METRICS_EVERY_S and not force:
            return
        counts = {name: value for name, value in vars(self._interval).items() if name != "started_s"}
        replicas = self.registry.ready()
        served = min((replica.version for replica in replicas), default=-1)
        self.log("interval", seconds=seconds, running=len(self._running), served_version=served, **counts)
        self._interval = _Interval(now)

    async def _cancel_running(self) -> None:
        tasks = [*self._running, *([self._evaluation_task] if self._evaluation_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
