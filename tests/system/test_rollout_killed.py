"""Rollout workers that are killed or stopped at any moment: every prompt is trained on once, and none is left out."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving_bridge.queue.queue import TrajectoryQueue
from serving_bridge.routing.registry import ReplicaRegistry
from tests.conftest import REPOSITORY
from tests.support.new_models import SMALL
from tests.support.rollout_world import AdditionTask
from tools.assembly.new_model import create_model

GROUPS_PER_STEP = 4
#: longer than anything here takes on a busy machine
LONG_S = 240.0


def start(folder: Path, name: str, steps: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.support.rollout_process", str(folder), name, str(steps)]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stderr=log)


def train_while_killing(folder: Path, *, steps: int, seed: int, kills: int) -> list[int]:
    """Trains `steps` steps on what two workers give, one of which is killed again and again; returns the prompts."""
    texts = [AdditionTask().problem("train", i).question for i in range(200)] + ["0123456789+="]
    create_model(folder / "model", SMALL, texts, seed=0)
    queue, registry, draw = (
        TrajectoryQueue(folder / "state.db"),
        ReplicaRegistry(folder / "replicas"),
        random.Random(seed),
    )
    workers = {name: start(folder, name, steps) for name in ("a", "b")}
    trained: list[int] = []
    pending: list[str] = []
    completed, next_kill, deadline = 0, time.monotonic() + 1.0, time.monotonic() + LONG_S
    try:
        while completed < steps:
            assert time.monotonic() < deadline, (queue.admin.progress(), trained)
            for i in range(2):
                registry.report(f"r{i}", url=f"http://r{i}", state="healthy", version=1, step=completed)
            waits = kills and completed == steps - 1  # the end comes after all kills
            wanted = 0 if waits else GROUPS_PER_STEP - len(pending)
            for group in queue.consumer.lease_groups(wanted, trained_version=1, max_staleness=9).groups:
                pending.append(group[0].group_id)
                trained.append(int(group[0].prompt["index"]))
            if len(pending) == GROUPS_PER_STEP:
                completed += 1
                queue.consumer.mark_trained(pending, completed_steps=completed, trained_version=1)
                queue.consumer.acknowledge(pending)
                pending = []
            if kills and time.monotonic() > next_kill:
                name = draw.choice(list(workers))
                how = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                workers[name].send_signal(how)
                status = workers[name].wait(LONG_S)
                assert how == signal.SIGKILL or status in (0, -signal.SIGTERM), (folder / f"{name}.log").read_text()
                workers[name] = start(folder, name, steps)
                kills, next_kill = kills - 1, time.monotonic() + draw.uniform(0.4, 1.4)
            time.sleep(0.05)
        queue.consumer.finish()
        for name, worker in workers.items():
            assert worker.wait(LONG_S) == 0, (folder / f"{name}.log").read_text()
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait(LONG_S)
    assert kills == 0
    return trained


def test_every_prompt_is_trained_on_once_though_workers_are_killed(tmp_path: Path) -> None:
    trained = train_while_killing(tmp_path, steps=24, seed=0, kills=4)
    assert sorted(trained) == list(range(24 * GROUPS_PER_STEP))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 6))
def test_every_prompt_is_trained_on_once_though_workers_are_killed_all_the_time(tmp_path: Path, seed: int) -> None:
    trained = train_while_killing(tmp_path, steps=60, seed=seed, kills=15)
    assert sorted(trained) == list(range(60 * GROUPS_PER_STEP))
