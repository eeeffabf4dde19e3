"""A user's own data with a user's own reward: rows of columns, and a function that scores answers to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from learner_jax.runtime import raised
from rewards.contracts import Problem, RewardRequest, RewardResult, Split, TaskError, failed, scored
from rewards.environments import environment_pool, played
from rewards.sandbox import (
    ENVIRONMENT,
    REWARD,
    Verified,
    VerifierError,
    VerifierPool,
    printable,
    read_score,
    to_json,
    user_pool,
)
from rewards.settings import TaskSettings
from rewards.tasks.problems import ListedProblems
from rewards.tasks.row_sources import read_rows

_MAX_REFUSALS = 10
Scorer = Callable[[Problem, str], Verified]


class RowsTask:
    """Problems from rows, scored by a function; implements `rewards.contracts.task.Task`.

    Without a function, answers get what the user's environment gives to the first answer of an episode.
    """

    def __init__(self, settings: TaskSettings, *, seed: int, deadline_s: float, num_workers: int) -> None:
        by_environment = not settings.reward and settings.environment not in ENVIRONMENT.built_in
        if not settings.reward and not by_environment:
            known = ", ".join(REWARD.names())
            raise TaskError(
                f'task.reward is empty; a task of rows needs a function, such as "my_rewards:exact", or one of: {known}'
            )
        rows = read_rows(settings)
        door, self._name = (ENVIRONMENT, settings.environment) if by_environment else (REWARD, settings.reward)
        self._what = f"{door.setting} {self._name!r}"
        self._version = f"rows/{rows.name}@{door.version(self._name)}"
        self._problems = ListedProblems(
            rows.problems, seed=seed, holdout_percent=settings.holdout_percent, origin=rows.origin
        )
        self._pool: VerifierPool | None = None
        if settings.reward in REWARD.built_in:
            self._scorer = _own_scorer(settings.reward, rows.problems)
        elif by_environment:
            self._pool = environment_pool(settings, deadline_s=deadline_s, num_workers=num_workers)
            self._scorer = partial(played, self._pool)
        else:
            self._pool = user_pool(
                "rewards.sandbox.reward_function",
                settings.reward,
                confined=settings.score_confined,
                deadline_s=deadline_s,
                num_workers=num_workers,
            )
            self._scorer = partial(_asked, self._pool)

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
            return failed(f"{self._what}: {error}", error.failure)
        except Exception as error:  # noqa: BLE001  (isolation: one answer must not end the rollouts)
            return failed(f"{self._what}: {raised(error)}")
        reasons = (f"expected {problem.answer!r}",) if problem.answer else ()
        parts = {printable(name): value for name, value in verified.parts.items()}
        return scored(verified.judged_score, parts, reasons=reasons)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


def _asked(pool: VerifierPool, problem: Problem, answer: str) -> Verified:
    request = {"prompt": problem.question, "answer": answer, "row": to_json(problem.metadata)}
    return pool.call(request, key=problem.question)


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
