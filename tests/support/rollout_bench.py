"""A rollout worker with everything real around it but the replicas."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rewards.environments.feedback import FeedbackEnvironment
from serving_bridge.evaluation.skill import PromptEncoder
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from serving_bridge.rollout.worker import RolloutWorker, RunIdentity
from serving_bridge.routing.registry import ReplicaRegistry
from serving_bridge.settings.serving import EvaluationSettings, RolloutSettings
from serving_bridge.text.tokenizer import Tokenizer, load_tokenizer
from tests.support.new_models import SMALL
from tests.support.rollout_world import EOS, VOCAB, AdditionTask, FakeReplica, choice, reply, session_factory
from tools.assembly.new_model import create_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("rollout") / "model"
    texts = [AdditionTask().problem("train", i).question for i in range(200)] + ["0123456789+="]
    create_model(folder, SMALL, texts, seed=0)
    found = load_tokenizer(folder)
    assert found.eos_ids == (EOS,)
    return found


class Bench:
    """A worker with everything real around it but the replicas."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        *replicas: FakeReplica,
        pace: Pace | None = None,
        queue: TrajectoryQueue | None = None,
        turns: int = 1,
        task: AdditionTask | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> None:
        self.queue = TrajectoryQueue(folder / "state.db") if queue is None else queue
        self.registry = ReplicaRegistry(folder / "replicas")
        self.replicas = {f"r{i}": replica for i, replica in enumerate(replicas)}
        self.records: list[dict[str, Any]] = []
        limits = {"max_prompt_tokens": 20, "max_tokens": 4, "group_size": 2, "max_wait_s": 5.0}
        task = task or AdditionTask()
        self.worker = RolloutWorker(
            name="w",
            identity=RunIdentity("run", 2),
            task=task,
            encoder=PromptEncoder(tokenizer, template="{question}", chat=False, max_prompt_tokens=20),
            queue=self.queue.producer,
            registry=self.registry,
            settings=RolloutSettings(**(limits | settings)),
            evaluation=EvaluationSettings(),
            pace=pace or Pace(max_staleness=0, groups_per_step=2, total_steps=5),
            log=lambda event, **fields: self.records.append({"event": event, **fields}),
            should_stop=should_stop,
            environment=FeedbackEnvironment(task, turns=turns, feedback="="),
            vocab_size=VOCAB,
            open_session=session_factory(self.replicas),
            rng=random.Random(0),
            tick_s=0.01,
        )

    def ready(self, version: int = 1) -> None:
        for name in self.replicas:
            self.registry.report(name, url=f"http://{name}", state="healthy", version=version, step=0)

    async def run_until(self, condition: Callable[[], bool]) -> None:
        running = asyncio.create_task(self.worker.run())
        async with asyncio.timeout(20):
            while not condition() and not running.done():
                await asyncio.sleep(0.01)
        self.queue.consumer.finish()
        await running

    def run(self, condition: Callable[[], bool]) -> None:
        asyncio.run(self.run_until(condition))

    def num_ready(self) -> int:
        return self.queue.admin.progress().num_ready

    def total(self, counter: str) -> int:
        return sum(record[counter] for record in self.records if record["event"] == "interval")


@contextmanager
def error_of(bench: Bench, error: type[Exception], match: str) -> Iterator[None]:
    with pytest.raises(error, match=match):
        asyncio.run(bench.worker.run())
    yield


def two(*tokens: int, finish_reason: str = "stop", **options: Any) -> Any:
    """A script that gives both answers of a group these tokens."""
    return lambda _: reply(*(choice(list(tokens), finish_reason, index=i, **options) for i in range(2)))
