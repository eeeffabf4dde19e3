"""A user's own data with a user's own reward: rows of columns, and a function that scores answers to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from learner_jax.runtime import raised, source_of
from rewards.contracts import Problem, RewardRequest, RewardResult, Split, TaskError, failed, scored
from rewards.sandbox import Verified, VerifierError, VerifierPool, VerifierStartError, printable
from rewards.settings import TaskSettings
from rewards.tasks.plain_json import to_json
from rewards.tasks.problems import ListedProblems, stable_hash
from rewards.tasks.reward_function import REWARD, read_score
from rewards.tasks.row_sources import read_rows

_DIGEST_CHARACTERS = 12
_MAX_REFUSALS = 10
Scorer = Callable[[Problem, str], Verified]


class RowsTask:
    """Problems from rows, scored by a function; implements `rewards.contracts.task.Task`."""

    def __init__(self, settings: TaskSettings, *, seed: int, deadline_s: float, num_workers: int) -> None:
        if not settings.reward:
            known = ", ".join(REWARD.names())
            raise TaskError(
                f'task.reward is empty; a task of rows needs a function, such as "my_rewards:exact", or one of: {known}'
            )
        rows = read_rows(settings)
        self._name = settings.reward
        self._version = f"rows/{rows.name}@{_reward_version(settings.reward)}"
        self._problems = ListedProblems(
            rows.problems, seed=seed, holdout_percent=settings.holdout_percent, origin=rows.origin
        )
        self._pool: VerifierPool | None = None
        if settings.reward in REWARD.built_in:
            self._scorer = _own_scorer(settings.reward, rows.problems)
        else:
            self._pool = reward_pool(settings, deadline_s=deadline_s, num_workers=num_workers)
            self._scorer = _pool_scorer(self._pool)

    @property
    def version(self) -> str:
        return self._version

    def problem(self, split: Split, index: int) -> Problem:
        return self._problems.problem(split, index)

    def num_distinct(self, split: Split) -> int | None:
        return self._problems.num_distinct(split)

    def target(self, problem: Problem) -> str:
        if not problem.answer:
            raise TaskError(
                "the rows have no reference answers to imitate: set task.answer_column or drop [warm_start]"
            )
        return problem.answer

    def score(self, request: RewardRequest) -> RewardResult:
        problem = request.problem
        try:
            verified = self._scorer(problem, request.response)
        except VerifierError as error:
            return failed(f"task.reward {self._name!r}: {error}", error.failure)
        except Exception as error:  # noqa: BLE001  (isolation: one answer must not end the rollouts)
            return failed(f"task.reward {self._name!r}: {raised(error)}")
        reasons = (f"expected {problem.answer!r}",) if problem.answer else ()
        parts = {printable(name): value for name, value in verified.parts.items()}
        return scored(verified.score or 0.0, parts, reasons=reasons)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def reward_pool(settings: TaskSettings, *, deadline_s: float, num_workers: int) -> VerifierPool:
    """Processes for the user's function, which was loaded once as a trial.

    An answer is scored once, however long it takes: a judge that is asked over the network may cost money.

    Raises:
      TaskError: the function can't be loaded, or this machine can't confine it.
    """
    pool = VerifierPool(
        "rewards.tasks.reward_function",
        {"name": settings.reward, "confined": settings.score_confined},
        num_workers=num_workers,
        deadline_s=deadline_s,
        slice_s=deadline_s,
        confinement="required" if settings.score_confined else "none",
        folder=os.getcwd(),
    )
    try:
        pool.check()
    except VerifierStartError as error:
        advice = "; see task.score_confined" if "onfine" in error.said else ""
        raise TaskError(f"{error.said}{advice}") from None
    return pool


def _pool_scorer(pool: VerifierPool) -> Scorer:
    def score(problem: Problem, answer: str) -> Verified:
        request = {"prompt": problem.question, "answer": answer, "row": to_json(problem.metadata)}
        return pool.call(request, key=f"{stable_hash(problem.question)}")

    return score


def _own_scorer(name: str, problems: list[Problem]) -> Scorer:
    """Weir's own functions are bounded by themselves, and run in place. A row that one can't read is refused here."""
    function = REWARD.open(name)

    def score(problem: Problem, answer: str) -> Verified:
        return Verified(**read_score(function(problem.question, answer, problem.metadata)))

    refused = [f"row {problem.index}: {why}" for problem in problems if (why := _refusal(score, problem))]
    if refused:
        shown = "\n  ".join(refused[:_MAX_REFUSALS])
        raise TaskError(f"task.reward {name!r} can't score {len(refused)} of {len(problems)} rows:\n  {shown}")
    return score


def _refusal(score: Scorer, problem: Problem) -> str:
    try:
        score(problem, "")
    except Exception as error:  # noqa: BLE001  (told as a row that can't be used)
        return f"{error}"
    return ""


def _reward_version(name: str) -> str:
    """The function's name, and a digest of its file; what the file imports is not in it."""
    file = source_of(REWARD.target(name))
    if name in REWARD.built_in or file is None:
        return name
    return f"{name}:{hashlib.sha256(file.read_bytes()).hexdigest()[:_DIGEST_CHARACTERS]}"
