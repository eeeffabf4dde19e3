"""A rollout worker as a process of its own, for the tests that kill it: python -m tests.rollout_process FOLDER STEPS"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from rewards.feedback import FeedbackEnvironment
from serving_bridge.config import EvaluationSettings, RolloutSettings
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.queue import TrajectoryQueue
from serving_bridge.registry import ReplicaRegistry
from serving_bridge.rollout import RolloutWorker, RunIdentity
from serving_bridge.staleness import Pace
from serving_bridge.tokenization import load_tokenizer
from tests.rollout_world import VOCAB, AdditionTask, FakeReplica, session_factory


def main(folder: Path, name: str, steps: int) -> None:
    from tools.wiring import StopRequest

    task = AdditionTask()
    replicas = {f"r{i}": FakeReplica(seed=i, token_s=0.002) for i in range(2)}
    worker = RolloutWorker(
        name=name,
        identity=RunIdentity("run", 2),
        task=task,
        encoder=PromptEncoder(
            load_tokenizer(folder / "model"), template="{question}", chat=False, max_prompt_tokens=20
        ),
        queue=TrajectoryQueue(folder / "state.db", claim_lease_s=2.0),
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
