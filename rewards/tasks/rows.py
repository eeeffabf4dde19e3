"""A user's own data with a user's own reward: rows of columns, and a function that scores answers to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from learner_jax.runtime import raised
from rewards.contracts import Problem, RewardRequest, RewardResult, Split, TaskError, failed, scored
from rewards.data import LeftOut, RowTable, SplitRows, open_table, read_tools_file
from rewards.environments import environment_pool, played
from rewards.sandbox import AGENT, ENVIRONMENT, VerifierError, VerifierPool, printable
from rewards.settings import TaskSettings
from rewards.tasks.row_reward import RowReward, check_names_reward, create_row_reward
from rewards.verifiers import VERIFIER

_EXPECTED = 'a file, such as "prompts.jsonl", or a function that gives rows, such as "my_data:rows"'


class RowsTask:
    """Problems from rows, scored by a function; implements `rewards.contracts.task.Task`.

    Without a function, answers get what the user's environment gives to the first answer of an episode. Where an agent
    plays, which says itself what its episodes earned, none is needed; what it leaves to the task is refused then.
    """

    def __init__(self, settings: TaskSettings, *, seed: int, deadline_s: float, num_workers: int) -> None:
        has_reward = bool(settings.immediate_reward or settings.rewards)
        by_environment = not has_reward and settings.environment not in ENVIRONMENT.built_in
        by_agent = not has_reward and settings.environment == "agent"
        if not by_environment and not by_agent:
            check_names_reward(settings)
        if not settings.data:
            raise TaskError(f"task.data is empty; a task of rows needs {_EXPECTED}")
        self._pool: VerifierPool | None = None
        self._reward: RowReward | None = None
        self._tables: dict[Split, RowTable] = {}
        try:
            if by_environment:
                self._what = f"{ENVIRONMENT.setting} {settings.environment!r}"
                scored_by = ENVIRONMENT.version(settings.environment)
            elif by_agent:
                self._what = f"{AGENT.setting} {settings.episode.agent!r}"
                scored_by = AGENT.version(settings.episode.agent)
            else:
                self._what = "task.rewards" if settings.rewards else f"task.reward {settings.immediate_reward!r}"
                self._reward = create_row_reward(settings, deadline_s=deadline_s, num_workers=num_workers)
                scored_by = self._reward.version
            self._tables = _open_tables(settings, self._reward)
            self._version = f"rows/{'+'.join(table.name for table in self._tables.values())}@{scored_by}"
            self._problems = SplitRows(
                self._tables,
                seed=seed,
                holdout_percent=settings.holdout_percent,
                curriculum=settings.curriculum,
            )
            if by_environment:
                self._pool = environment_pool(settings, deadline_s=deadline_s, num_workers=num_workers)
        except BaseException:
            self.close()
            raise

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
                "the rows have no reference answers to imitate: set task.answer_column, or drop [warm_start] and name "
                "a trained model in model.path"
            )
        return problem.answer

    def score(self, request: RewardRequest) -> RewardResult:
        problem = request.problem
        result = self._scored(problem, request.response)
        if result.score is None:
            return replace(result, reasons=tuple(f"{self._what}: {why}" for why in result.reasons))
        if result.verdict == "fail" and not result.reasons and problem.answer:
            return replace(result, reasons=(f"expected {problem.answer!r}",))
        return result

    def _scored(self, problem: Problem, answer: str) -> RewardResult:
        if self._reward is not None:
            return self._reward.score(problem.question, answer, problem.metadata)
        if self._pool is None:
            return failed("the program returned no score, and task.reward is empty: return one, or set it", "refused")
        try:
            verified = played(self._pool, problem, answer)
            return scored(verified.judged_score, {printable(name): value for name, value in verified.parts.items()})
        except VerifierError as error:
            return failed(str(error), error.failure)
        except Exception as error:  # noqa: BLE001  (isolation: one answer must not end the rollouts)
            return failed(raised(error))

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
        if self._pool is not None:
            self._pool.close()
        if self._reward is not None:
            self._reward.close()


def _open_tables(settings: TaskSettings, reward: RowReward | None) -> dict[Split, RowTable]:
    """The sources, each run through once; rows that a verifier can't judge are refused."""
    tools = read_tools_file(settings.tools) if settings.tools else ()
    uses = [settings.immediate_reward, *(part.use for part in settings.rewards)]
    judge = reward if any(use in VERIFIER.names() for use in uses) else None

    def refusal(problem: Problem) -> str:
        assert judge is not None
        return judge.refusal(problem.metadata)

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
                    options=settings.options_of(split),
                    tools=tools,
                    refusal=None if judge is None else refusal,
                    known_by="" if judge is None else judge.version,
                )
    except BaseException:
        for table in tables.values():
            table.close()
        raise
    return tables
