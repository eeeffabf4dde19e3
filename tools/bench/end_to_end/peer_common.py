"""What the drivers of peers share: the work as they are told it, the rewards of Weir, and the events that they write.

Runs in a peer's environment, where only a part of what Weir needs is installed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.contracts import PASS_SCORE, RewardRequest, Split
from rewards.settings import TaskSettings
from rewards.tasks import create_task

Job = dict[str, Any]


def read_job() -> Job:
    """The work that the command line names. Producer: `workloads.peer_job`."""
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    return job


class Events:
    """Writes what happens, each event as a line, in the form that Weir's own metrics have."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a")  # noqa: SIM115  (open as long as the process lives)

    def write(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"t": time.time(), "event": event, **fields}) + "\n")
        self._file.flush()


class Problems:
    """The problems of a split that a job names, in order: prompts as token ids, and Weir's score of an answer."""

    def __init__(self, job: Job, split: Split, decode: Callable[[Sequence[int]], str]) -> None:
        settings = TaskSettings.model_validate_json(json.dumps(job["task"]))
        self._task = create_task(settings, seed=job["seed"])
        self._problems = [self._task.problem(split, index) for index in job[split]["indices"]]
        if [problem.question for problem in self._problems] != job[split]["questions"]:
            raise SystemExit(f"{self._task.version} makes other problems here than for Weir: install its version")
        self.prompts: list[list[int]] = job[split]["tokens"]
        self._eos_ids, self._decode = frozenset(job["eos_ids"]), decode

    def __len__(self) -> int:
        return len(self._problems)

    def score(self, number: int, answer: Sequence[int]) -> float:
        """The reward of an answer to problem `number`, 0 where it could not be judged.

        Args:
          answer: sampled token ids, up to the end token where there is one.
        """
        ended = bool(answer) and answer[-1] in self._eos_ids
        request = RewardRequest(self._problems[number], self._decode(answer), "stop" if ended else "length")
        return self._task.score(request).score or 0.0


def cut(answer: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    """An answer up to its first end token, which stays."""
    ends = [i for i, token in enumerate(answer) if token in eos_ids]
    return list(answer[: ends[0] + 1] if ends else answer)


def learning_rate_factor(warmup_steps: int) -> Callable[[int], float]:
    """Factor on the learning rate by update, from 0, as `learner_jax.training.optimizer` has it."""
    return lambda update: min(1.0, (update + 1) / max(warmup_steps, 1))


def summary(scores: Sequence[float]) -> dict[str, float]:
    """`accuracy` and `mean_score` of held-out answers."""
    passed = sum(score >= PASS_SCORE for score in scores)
    return {"accuracy": passed / len(scores), "mean_score": sum(scores) / len(scores)}
