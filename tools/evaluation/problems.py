"""The problems of a suite with what scores answers to them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.contracts import AsyncEnvironment, Environment, Problem, Task, TaskError, is_async, prompt_text
from rewards.environments import AgentEnvironment, create_environment, end_environment
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from tools.evaluation.errors import SuiteError
from tools.evaluation.rows import read_rows, text_in
from tools.evaluation.suites import Suite, SuiteSettings

_HASH_CHARACTERS = 16


@dataclass(frozen=True)
class SuiteProblem:
    """One problem of a suite.

    Attributes:
      id: names it in results, unique in its suite.
      cluster: its source; "" where the suite names none.
    """

    id: str
    cluster: str
    problem: Problem

    @property
    def question(self) -> str:
        return self.problem.question


@dataclass(frozen=True)
class OpenSuite:
    """A suite that can be asked.

    Attributes:
      environment: plays dialogs of several turns; None where each problem is asked once.
      hash: of problems, references, scorer, prompt and sampling: results of equal ones can be compared.
      notes: what a reader of its figures must know, a sentence each.
    """

    settings: SuiteSettings
    problems: Sequence[SuiteProblem]
    task: Task
    environment: Environment | AsyncEnvironment | None
    hash: str
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def plays_episodes(self) -> bool:
        """Whether its dialogs are more than text against text: with tools, coroutines, or an agent."""
        one = self.environment
        if one is None:
            return False
        return bool(getattr(one, "tools", ())) or is_async(one) or isinstance(one, AgentEnvironment)

    def prompt(self, problem: SuiteProblem) -> str:
        """The prompt, for people."""
        return prompt_text(problem.problem, self.settings.prompt_template)

    def messages(self, problem: SuiteProblem) -> tuple[tuple[str, str], ...]:
        """(role, text) of the prompt in a chat; of messages of the problem's own, those."""
        own = problem.problem.prompt
        if not isinstance(own, str | None):
            return tuple((str(message["role"]), str(message["content"])) for message in own)
        system = (("system", self.settings.system),) if self.settings.system else ()
        return (*system, ("user", self.prompt(problem)))

    def close(self) -> None:
        """Ends the processes that score and play."""
        if self.environment is not None:
            end_environment(self.environment)
        self.task.close()


def open_suite(suite: Suite) -> OpenSuite:
    """Reads the problems and starts what scores them; `OpenSuite.close` ends it.

    Raises:
      SuiteError, DoorError: a problem is wrong or there is none; the scorer can't be used.
    """
    try:
        return _of_task(suite) if suite.settings.source == "task" else _of_file(suite)
    except TaskError as error:
        raise SuiteError(f"suite {suite.name}: {error}") from error


def _of_file(suite: Suite) -> OpenSuite:
    columns, score = suite.settings.columns, suite.settings.score
    problems: list[SuiteProblem] = []
    seen: dict[str, str] = {}
    for where, number, row in read_rows(suite):
        question = text_in(row, columns.question, where, key="columns.question")
        answer = text_in(row, columns.answer, where, key="columns.answer") if columns.answer else ""
        name = text_in(row, columns.id, where, key="columns.id") if columns.id else str(number)
        cluster = text_in(row, columns.cluster, where, key="columns.cluster") if columns.cluster else ""
        for known, column in (("question", columns.question), ("answer", columns.answer)):
            if column != known and known in row:
                raise SuiteError(f"{where} has {known!r}, but columns.{known} is {column!r}: rename one of them")
        if name in seen:
            raise SuiteError(f"{where}: the id {name!r} is that of {seen[name]}, too; ids must be unique")
        seen[name] = where
        problem = Problem(len(problems), question, answer, {**row, "question": question, "answer": answer})
        problems.append(SuiteProblem(name, cluster, problem))
    with tempfile.TemporaryDirectory(prefix="weir-suite-") as folder:
        file = Path(folder) / f"{suite.name}.jsonl"
        lines = [json.dumps(dict(one.problem.metadata), ensure_ascii=True) for one in problems]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        settings = TaskSettings(
            provider="rows",
            data=str(file),
            answer_column="answer" if columns.answer else "",
            reward=score.reward,
            score_timeout_s=score.timeout_s,
            score_processes=score.processes,
            score_confined=score.confined,
        )
        try:
            task = create_task(settings, seed=0)
        except TaskError as error:
            told = str(error).replace(str(file), str(suite.folder / suite.settings.path))
            raise SuiteError(f"suite {suite.name}: {told.replace('task.reward', 'score.reward')}") from None
    return _opened(suite, problems, task, None)


def _of_task(suite: Suite) -> OpenSuite:
    settings, table = suite.settings, suite.settings.task
    assert table is not None
    table = _from_folder(table, suite.folder)
    task = create_task(table, seed=max(0, settings.sampling.seed))
    try:
        known = task.num_distinct(settings.split)
        number = settings.limit or known
        if number is None:
            raise SuiteError(f"suite {suite.name}: this task makes problems without end; set limit to their number")
        if known is not None and settings.split != "train":
            number = min(number, known)
        if not number:
            raise SuiteError(f"suite {suite.name}: the task has no {settings.split} problems")
        found = [task.problem(settings.split, index) for index in range(number)]
        problems = [SuiteProblem(str(index), "", problem) for index, problem in enumerate(found)]
        is_dialog = table.turns > 1 or "environment" in table.model_fields_set
        environment = create_environment(task, table) if is_dialog else None
        return _opened(suite, problems, task, environment)
    except BaseException:
        task.close()
        raise


def _from_folder(table: TaskSettings, folder: Path) -> TaskSettings:
    """The same with its file, if it names one, found from the suite's folder."""
    changed: dict[str, Any] = {}
    for key in ("path", "data"):
        value = getattr(table, key)
        if value and (folder / value).is_file() and not Path(value).is_absolute():
            changed[key] = str(folder / value)
    return table.model_copy(update=changed)


def _opened(
    suite: Suite, problems: Sequence[SuiteProblem], task: Task, environment: Environment | AsyncEnvironment | None
) -> OpenSuite:
    settings = suite.settings
    plain = settings.model_dump(mode="json", exclude={"path", "description", "limit"})
    scorer = environment.version if environment is not None else task.version
    digest = hashlib.sha256(json.dumps([plain, scorer], sort_keys=True).encode())
    for one in problems:
        fields = [one.id, one.cluster, one.problem.question, one.problem.answer]
        digest.update(json.dumps(fields).encode("utf-8", "surrogatepass") + b"\n")
    return OpenSuite(
        settings, problems, task, environment, digest.hexdigest()[:_HASH_CHARACTERS], tuple(_notes(problems))
    )


def _notes(problems: Sequence[SuiteProblem]) -> list[str]:
    counts = Counter(one.question.strip() for one in problems)
    repeated = sum(count for count in counts.values() if count > 1)
    if not repeated:
        return []
    return [f"{repeated} of {len(problems)} problems have a question that another one has, too"]
