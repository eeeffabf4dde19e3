"""A user's own data with a user's own reward: rows of columns, and a function that scores answers to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from learner_jax.runtime import raised
from rewards.contracts import Problem, RewardRequest, RewardResult, Split, TaskError, failed, scored
from rewards.data import LeftOut, RowTable, SplitRows, open_table, read_tools_file
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

_EXPECTED = 'a file, such as "prompts.jsonl", or a function that gives rows, such as "my_data:rows"'
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
        if not settings.data:
            raise TaskError(f"task.data is empty; a task of rows needs {_EXPECTED}")
        door, self._name = (ENVIRONMENT, settings.environment) if by_environment else (REWARD, settings.reward)
        self._what = f"{door.setting} {self._name!r}"
        version = door.version(self._name)
        built_in = settings.reward in REWARD.built_in
        scorer = _own_scorer(settings.reward) if built_in else None
        self._tables = _open_tables(settings, scorer, known_by=version if built_in else "")
        self._pool: VerifierPool | None = None
        try:
            self._version = f"rows/{'+'.join(table.name for table in self._tables.values())}@{version}"
            self._problems = SplitRows(
                self._tables,
                seed=seed,
                holdout_percent=settings.holdout_percent,
                curriculum=settings.curriculum,
            )
            self._scorer = scorer or self._pooled(settings, by_environment, deadline_s, num_workers)
        except BaseException:
            self.close()
            raise

    def _pooled(self, settings: TaskSettings, by_environment: bool, deadline_s: float, num_workers: int) -> Scorer:
        """The scorer that asks the user's code in processes of its own."""
        if by_environment:
            self._pool = environment_pool(settings, deadline_s=deadline_s, num_workers=num_workers)
            return partial(played, self._pool)
        self._pool = user_pool(
            "rewards.sandbox.reward_function",
            settings.reward,
            confined=settings.score_confined,
            deadline_s=deadline_s,
            num_workers=num_workers,
        )
        return partial(_asked, self._pool)

    @property
    def epoch_size(self) -> int:
        """Train rows, those with the same question included."""
        return len(self._problems.members["train"])

    @property
    def left_out(self) -> LeftOut:
        """Rows that are asked nowhere, since their questions stand elsewhere."""
        return self._problems.left_out

    @property
    def tables(self) -> Mapping[Split, RowTable]:
        """The sources by the split that they were given for; "train" is also that of splits without their own."""
        return self._tables

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
        for table in self._tables.values():
            table.close()
        if self._pool is not None:
            self._pool.close()


def _open_tables(settings: TaskSettings, scorer: Scorer | None, *, known_by: str) -> dict[Split, RowTable]:
    """The sources, each run through once."""
    tools = read_tools_file(settings.tools) if settings.tools else ()
    given: dict[Split, str] = {
        "train": settings.data,
        "validation": settings.validation_data,
        "heldout": settings.heldout_data,
    }
    tables: dict[Split, RowTable] = {}
    try:
        for split, data in given.items():
            if data:
                setting = "task.data" if split == "train" else f"task.{split}_data"
                tables[split] = open_table(
                    data,
                    settings,
                    setting=setting,
                    tools=tools,
                    refusal=None if scorer is None else partial(_refusal, scorer),
                    known_by=known_by,
                )
    except BaseException:
        for table in tables.values():
            table.close()
        raise
    return tables


def _asked(pool: VerifierPool, problem: Problem, answer: str) -> Verified:
    request = {"prompt": problem.question, "answer": answer, "row": to_json(problem.metadata)}
    return pool.call(request, key=problem.question)


def _own_scorer(name: str) -> Scorer:
    """Weir's own functions are bounded by themselves, and run in place. A row that one can't read is refused."""
    function = REWARD.open(name)

    def score(problem: Problem, answer: str) -> Verified:
        return Verified(**read_score(function(problem.question, answer, problem.metadata)))

    return score


def _refusal(score: Scorer, problem: Problem) -> str:
    try:
        score(problem, "")
    except Exception as error:  # noqa: BLE001  (told as a row that can't be used)
        return f"{error}"
    return ""
