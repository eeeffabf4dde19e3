"""A rollout worker as a process of its own, to be killed: python -m tests.support.rollout_process FOLDER STEPS"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from rewards.environments.feedback import FeedbackEnvironment
from serving_bridge.evaluation.skill import PromptEncoder
from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.queue.staleness import Pace
from serving_bridge.rollout.worker import RolloutWorker, RunIdentity
from serving_bridge.routing.registry import ReplicaRegistry
from serving_bridge.settings.serving import EvaluationSettings, RolloutSettings
from serving_bridge.text.tokenizer import load_tokenizer
from tests.support.rollout_world import VOCAB, AdditionTask, FakeReplica, session_factory


def main(folder: Path, name: str, steps: int) -> None:
    from tools.assembly import StopRequest

    task = AdditionTask()
    replicas = {f"r{i}": FakeReplica(seed=i, token_s=0.002) for i in range(2)}
    worker = RolloutWorker(
        name=name,
        identity=RunIdentity("run", 2),
        task=task,
        encoder=PromptEncoder(
            load_tokenizer(folder / "model"), template="{question}", chat=False, max_prompt_tokens=20
        ),
        queue=TrajectoryQueue(folder / "state.db", claim_lease_s=2.0).producer,
        registry=ReplicaRegistry(folder / "replicas"),
        settings=RolloutSettings(max_prompt_tokens=20, max_tokens=4, group_size=2, concurrent_groups=6, drain_s=1),
        evaluation=EvaluationSettings(),
        pace=Pace(max_staleness=2, groups_per_step=4, total_steps=steps),
        log=lambda *_, **__: None,
        should_stop=StopRequest().install(),
        environment=FeedbackEnvironment(task, turns=2, feedback="="),
        vocab_size=VOCAB,
        open_session=session_factory(replicas),
        rng=random.Random(0),
        renew_every_s=0.5,
    )
    asyncio.run(worker.run())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
