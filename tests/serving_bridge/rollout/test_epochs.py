"""An epoch of rows is exact whatever dies: each row is trained on once, by any number of workers that are killed."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rewards.contracts import Task
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from serving_bridge.queue import Pace, TrajectoryQueue
from tests.support.queue_engines import Clock
from tests.support.trajectories import make_group

_CLAIM_S = 60.0
_EPOCHS = 2


@dataclass
class Worker:
    """A rollout worker as the queue sees it; `held` and `made` are gone when it is killed."""

    name: str
    held: list[int] = field(default_factory=list)
    made: list[int] = field(default_factory=list)


class Run:
    """A run in which anything may be killed between two calls of the queue; the learner goes back to its checkpoint."""

    def __init__(self, total: int, workers: int, rng: random.Random) -> None:
        self.rng, self.clock = rng, Clock()
        self.queue = TrajectoryQueue(":memory:", clock=self.clock, claim_lease_s=_CLAIM_S, lease_s=_CLAIM_S)
        self.pace = Pace(max_staleness=total, groups_per_step=1, total_steps=total)
        self.workers = [Worker(f"worker{number}") for number in range(workers)]
        self.trained: list[str] = []
        self.saved: tuple[list[str], int] = ([], 0)
        self.queue.consumer.recover([], completed_steps=0, prompt_cursor=0)

    def claim(self) -> None:
        worker = self.rng.choice(self.workers)
        free = self.rng.randint(1, 4)
        worker.held += self.queue.producer.claim_prompts(worker.name, free, self.pace, served_step=len(self.trained))

    def make(self) -> None:
        """Groups end in any order, not in that of their prompts."""
        worker = self.rng.choice(self.workers)
        if worker.held:
            worker.made.append(worker.held.pop(self.rng.randrange(len(worker.held))))

    def put(self) -> None:
        worker = self.rng.choice(self.workers)
        for index in worker.made:
            self.queue.producer.put([(index, make_group(f"run/{index}", version=1))])
        worker.made.clear()

    def kill_worker(self) -> None:
        """Its place is taken under its own name, or under another one, so that its claims run out first."""
        number = self.rng.randrange(len(self.workers))
        old = self.workers[number]
        if self.rng.random() < 0.5:
            self.workers[number] = Worker(old.name, self.queue.producer.resume_claims(old.name))
            return
        self.workers[number] = Worker(f"{old.name}'")
        for worker in self.workers:
            kept = set(self.queue.producer.renew_claims(worker.name))
            worker.held = [index for index in worker.held if index in kept]
        self.clock.now_s += _CLAIM_S / 2
        for worker in self.workers:
            self.queue.producer.renew_claims(worker.name)
        self.clock.now_s += _CLAIM_S / 2 + 1
        for worker in self.workers:
            self.queue.producer.renew_claims(worker.name)

    def train(self) -> None:
        report = self.queue.consumer.lease_groups(self.rng.randint(1, 3), trained_version=1, max_staleness=10**6)
        for group in report.groups:
            self.queue.consumer.mark_trained(
                [group[0].group_id], completed_steps=len(self.trained) + 1, trained_version=1
            )
            self.trained.append(group[0].group_id)

    def save(self) -> None:
        self.saved = (list(self.trained), self.queue.consumer.prompt_cursor())
        self.queue.consumer.acknowledge(list(self.trained))

    def kill_learner(self) -> None:
        trained, cursor = self.saved
        self.trained = list(trained)
        self.queue.consumer.take_over()
        self.queue.consumer.recover(trained, completed_steps=len(trained), prompt_cursor=cursor)

    def work(self, total: int) -> None:
        common = [self.claim, self.make, self.make, self.put, self.train]
        rare = [self.kill_worker, self.save, self.kill_learner]
        for _ in range(100 * total):
            if len(self.trained) == total:
                return
            self.rng.choice(common if self.rng.random() < 0.9 else rare)()
        raise AssertionError(f"{len(self.trained)} of {total} groups after {100 * total} calls")


def sources(folder: Path) -> Task:
    """Rows of two files, mixed; one question stands twice."""
    for name, size in (("one", 14), ("two", 9)):
        rows = [
            {"question": f"{name} {number % 13}", "answer": "1", "row": f"{name}{number}"} for number in range(size)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [{"data": str(folder / f"{name}.jsonl")} for name in ("one", "two")]
    return create_task(
        TaskSettings.model_validate({"provider": "rows", "reward": "exact", "holdout_percent": 5, "sources": files}),
        seed=3,
    )


def check(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    task = sources(folder)
    size = sum(source.epoch_size for source in task.sources.values())  # type: ignore[attr-defined]
    run = Run(_EPOCHS * size, workers=seed % 5 + 1, rng=rng)
    run.work(_EPOCHS * size)
    indices = sorted(int(group.rpartition("/")[2]) for group in run.trained)
    assert indices == list(range(_EPOCHS * size)), seed
    rows = sorted({task.problem("train", index).metadata["row"] for index in range(size)})
    assert len(rows) == size
    for epoch in range(_EPOCHS):
        asked = [task.problem("train", index).metadata["row"] for index in indices[epoch * size : (epoch + 1) * size]]
        assert Counter(asked) == dict.fromkeys(rows, 1), (seed, epoch)
    run.queue.close()


@pytest.mark.parametrize("seed", range(10))
def test_each_row_is_trained_on_once_an_epoch_whatever_is_killed(seed: int, tmp_path: Path) -> None:
    check(tmp_path, seed)


@pytest.mark.soak
def test_a_thousand_runs_keep_their_epochs(tmp_path: Path) -> None:
    for seed in range(10, 1010):
        check(tmp_path, seed)
