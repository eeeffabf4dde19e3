"""The rollout worker against a replica that misbehaves on purpose; queue, registry, task and tokenizer are real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.config import TaskSettings
from rewards.tasks import create_task
from serving_bridge.config import EvaluationSettings, RolloutSettings
from serving_bridge.create_model import create_model
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.queue import TrajectoryQueue
from serving_bridge.registry import ReplicaRegistry
from serving_bridge.rollout import NoReplicaError, RolloutWorker, RunIdentity
from serving_bridge.staleness import Pace
from serving_bridge.tokenization import load_tokenizer
from serving_bridge.vllm_client import Aborted, Completion, Rejected, Unreachable, VllmClient
from tests.test_tokenization import SMALL

TASK = TaskSettings(
    provider="reasoning_gym",
    name="basic_arithmetic",
    options={"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2, "operators": ["+"]},
)
Answer = Callable[[int], list[Completion]]


class FaultyClient(VllmClient):
    """Answers as scripted instead of asking a server."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.calls = 0

    async def generate(self, token_ids: Sequence[int], **options: Any) -> list[Completion]:
        self.calls += 1
        call = self.calls
        await asyncio.sleep(0.01)
        return self._answer(call)


def completions(version: int = 1, *, versions: list[int] | None = None) -> list[Completion]:
    spans = np.array(versions or [version] * 3, np.int32)
    tokens = np.array([9, 10, 1], np.int32)
    logprobs = np.array([-0.5, -0.25, -0.125], np.float32)
    return [Completion((tokens + [i, 0, 0]).astype(np.int32), logprobs, spans, "stop") for i in range(2)]


class Bench:
    """A worker with everything real around it but the replica."""

    def __init__(self, folder: Path, answer: Answer, **settings: Any) -> None:
        task = create_task(TASK, seed=0)
        create_model(
            folder / "model", SMALL, [task.problem("train", i).question for i in range(100)] + ["0123456789"], seed=0
        )
        self.queue = TrajectoryQueue(folder / "state.db")
        self.registry = ReplicaRegistry(folder / "replicas")
        self.client = FaultyClient(answer)
        self.records: list[dict[str, Any]] = []
        limits: dict[str, Any] = {"max_prompt_tokens": 20, "max_tokens": 4, "group_size": 2, "max_wait_s": 2.0}
        self.worker = RolloutWorker(
            name="w",
            identity=RunIdentity("run", 2),
            task=task,
            encoder=PromptEncoder(
                load_tokenizer(folder / "model"), template="{question}", chat=False, max_prompt_tokens=20
            ),
            queue=self.queue,
            registry=self.registry,
            settings=RolloutSettings(**(limits | settings)),
            evaluation=EvaluationSettings(),
            pace=Pace(max_staleness=0, groups_per_step=2, total_steps=5),
            log=lambda event, **fields: self.records.append({"event": event, **fields}),
            should_stop=lambda: False,
        )
        self.worker._clients["http://r"] = self.client

    def ready(self, version: int = 1) -> None:
        self.registry.report("r", url="http://r", state="ready", version=version, step=0)

    async def run_until(self, condition: Callable[[], bool]) -> None:
        running = asyncio.create_task(self.worker.run())
        async with asyncio.timeout(20):
            while not condition() and not running.done():
                await asyncio.sleep(0.02)
        self.queue.finish()
        await running

    def total(self, counter: str) -> int:
        return sum(record[counter] for record in self.records if record["event"] == "interval")


def test_trajectories_carry_exactly_what_was_sampled(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda call: completions(versions=[1, 1, 2]))
    bench.ready(2)
    asyncio.run(bench.run_until(lambda: bench.queue.progress().num_ready == 2))
    (group, _) = bench.queue.lease_groups(2, trained_version=2, max_staleness=1).groups
    first = group[0]
    assert (first.trajectory_id, first.group_id, first.group_size) == ("run/0/0", "run/0", 2)
    prompt = bench.worker.encoder.encode(bench.worker.task.problem("train", 0))
    assert prompt is not None
    assert first.tokens.tolist() == [*prompt, 9, 10, 1]
    assert first.loss_mask.tolist() == [False] * len(prompt) + [True] * 3
    assert first.behavior_logprobs[len(prompt) :].tolist() == [-0.5, -0.25, -0.125]
    assert first.policy_version.tolist() == [-1] * len(prompt) + [1, 1, 2]
    assert first.oldest_version == 1
    assert bench.total("mixed_version_answers") == 4
    assert bench.total("tokens") == 12


def test_aborted_and_lost_answers_are_asked_for_again_and_never_become_samples(tmp_path: Path) -> None:
    def answer(call: int) -> list[Completion]:
        if call <= 2:
            raise (Aborted if call == 1 else Unreachable)("on purpose")
        return completions()

    bench = Bench(tmp_path, answer)
    bench.ready()
    asyncio.run(bench.run_until(lambda: bench.queue.progress().num_ready == 2))
    assert bench.queue.progress().num_ready == 2
    assert bench.total("retries") == 2
    assert bench.total("groups") == 2


def test_a_request_that_can_not_work_is_given_up_and_its_place_refunded(tmp_path: Path) -> None:
    def answer(call: int) -> list[Completion]:
        if call == 1:
            raise Rejected("on purpose")
        return completions()

    bench = Bench(tmp_path, answer)
    bench.ready()
    asyncio.run(bench.run_until(lambda: bench.queue.progress().num_ready == 2))
    progress = bench.queue.progress()
    assert (progress.num_ready, progress.num_claimed, progress.next_prompt) == (2, 0, 3)
    assert bench.total("failed_groups") == 1


def test_answers_of_a_version_that_the_registry_does_not_name_yet_are_taken(tmp_path: Path) -> None:
    """A server names a version only once it is proven; what the controller wrote last may be older."""
    bench = Bench(tmp_path, lambda call: completions(version=5))
    bench.ready(4)
    asyncio.run(bench.run_until(lambda: bench.queue.progress().num_ready == 2))
    assert bench.queue.progress().num_ready == 2


def test_without_a_replica_the_worker_gives_up_in_time_and_says_why(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda call: completions(), max_wait_s=0.3)
    bench.registry.report("r", url="http://r", state="stale", version=-1, step=-1)
    with pytest.raises(NoReplicaError, match=r"rollout\.max_wait_s\); known replicas: \['r is stale'\]"):
        asyncio.run(bench.worker.run())


def test_a_silent_controller_s_replica_is_not_ready(tmp_path: Path) -> None:
    now = [100.0]
    registry = ReplicaRegistry(tmp_path, max_silence_s=30, clock=lambda: now[0])
    registry.report("r", url="http://r", state="ready", version=1, step=0)
    assert [row.name for row in registry.ready()] == ["r"]
    now[0] += 31
    assert registry.ready() == []
    registry.remove("r")
    assert registry.replicas() == []


def test_a_bug_ends_the_worker_and_its_claims_are_taken_up_again(tmp_path: Path) -> None:
    def answer(call: int) -> list[Completion]:
        raise ZeroDivisionError

    bench = Bench(tmp_path, answer)
    bench.ready()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(bench.worker.run())
    assert bench.queue.resume_claims("w") == [0, 1]
