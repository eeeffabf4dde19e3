"""One round of a real rollout worker on a running server: prompts claimed, played, scored, put into a durable queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner_jax.runtime import NO_SPANS, Spans
from rewards.contracts import Task
from serving_bridge.access import Keys
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.fleet import Replica
from serving_bridge.queue import Pace, TrajectoryQueue
from serving_bridge.rollout import RolloutWorker, RunIdentity
from serving_bridge.routing import ReplicaRegistry
from serving_bridge.settings import EvaluationSettings, RolloutSettings
from tools.bench import BenchmarkError

_POLL_S = 0.02
#: no round takes longer: the replica is reported once
_ROUND_S = 3600.0


@dataclass(frozen=True)
class Side:
    """Whom the worker asks, and how.

    Attributes:
      keys: for the replica's tokens.
    """

    replica: Replica
    keys: Keys
    encoder: PromptEncoder
    settings: RolloutSettings


async def play_round(side: Side, task: Task, folder: Path, *, groups: int, spans: Spans = NO_SPANS) -> float:
    """Seconds until the groups of the round are in the queue.

    Args:
      folder: for queue and registry; made here.
      spans: told how long each group's parts take.

    Raises:
      BenchmarkError: a request was tried again, or a group had too few verdicts.
    """
    folder.mkdir()
    queue = TrajectoryQueue(folder / "state.db")
    registry = ReplicaRegistry(folder / "replicas", max_silence_s=_ROUND_S)
    replica = side.replica
    registry.report("bench", url=replica.base_url, state="healthy", version=0, step=0, start=replica.start_id)
    events: list[dict[str, Any]] = []
    worker = RolloutWorker(
        name="bench",
        identity=RunIdentity("bench", side.settings.group_size),
        task=task,
        encoder=side.encoder,
        queue=queue.producer,
        registry=registry,
        settings=side.settings,
        evaluation=EvaluationSettings(),
        pace=Pace(max_staleness=0, groups_per_step=groups, total_steps=1),
        log=lambda event, **fields: events.append({"event": event, **fields}),
        should_stop=lambda: False,
        keys=side.keys,
        spans=spans,
    )
    began = time.perf_counter()
    running = asyncio.create_task(worker.run())
    while queue.admin.progress().num_ready < groups:
        if running.done():
            await running
        _check(events)
        await asyncio.sleep(_POLL_S)
    seconds = time.perf_counter() - began
    queue.consumer.finish()
    await running
    queue.close()
    _check(events)
    return seconds


def _check(events: Sequence[Mapping[str, Any]]) -> None:
    """Raises `BenchmarkError` if a request was tried again, or a group left out."""
    failures = [event for event in events if event["event"] in ("retry", "unjudged_group")]
    if failures:
        raise BenchmarkError(f"{len(failures)} requests were tried again, or groups unjudged, the first: {failures[0]}")
