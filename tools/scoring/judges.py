"""What judges a file of answers: a verifier by its name, or the reward of a run's task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rewards.contracts import RewardResult
from rewards.settings import TaskSettings
from rewards.verifiers import Row, create_verifier


class RowJudge(Protocol):
    """Judges answers to rows."""

    def judge(self, answer: str, row: Row) -> RewardResult: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Source:
    """What judges.

    Attributes:
      verifier: name of a verifier; empty if the task's reward judges.
      task: settings of a run's task; None if a verifier judges.
      seed: of the run.
      deadline_s: longest time for one answer.
      sandbox: of a verifier that runs code: what holds it.
    """

    verifier: str = ""
    task: TaskSettings | None = None
    seed: int = 0
    deadline_s: float = 10.0
    sandbox: str = "bubblewrap"


def open_judge(source: Source) -> RowJudge:
    """The judge, with one worker process if it needs any.

    Raises:
      WeirError: it can't be made.
    """
    if source.task is None:
        return create_verifier(source.verifier, deadline_s=source.deadline_s, num_workers=1, sandbox=source.sandbox)
    from rewards.tasks import create_judge

    return create_judge(source.task, seed=source.seed, deadline_s=source.deadline_s, num_workers=1)
