"""Math problems from a file of {"question", "answer"} lines, judged by a parser of final answers of Weir's own.

References are trusted, and read strictly when the file is loaded: one that is not understood is refused by line, never
guessed at. Answers are hostile: they are parsed within bounds, and never run, so that no process is needed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewards.contracts import Problem, RewardRequest, RewardResult, Split, TaskError, failed, scored
from rewards.data import read_file, records, text_of
from rewards.mathematics import MARK, MathError, judge, read_reference
from rewards.sandbox import printable
from rewards.settings import TaskSettings
from rewards.tasks.problems import ListedProblems

#: changes with every change of what counts as right
_VERIFIER = "final-answer-3"
_MAX_REFUSALS = 10
_MAX_REASON_CHARACTERS = 200


class JsonlMathOptions(BaseModel):
    """`task.options` of a jsonl_math."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    question_key: str = Field("question", min_length=1, description="key of the question in a line")
    answer_key: str = Field("answer", min_length=1, description="key of the solution, or of the answer alone")
    unread_references: Literal["refuse", "skip"] = Field(
        "refuse", description="what happens to problems whose reference answer is in no form that is understood"
    )


class JsonlMathTask:
    """Math problems from a file; implements `rewards.contracts.task.Task`."""

    def __init__(self, settings: TaskSettings, *, seed: int, deadline_s: float = 5.0, num_workers: int = 0) -> None:
        try:
            options = JsonlMathOptions.model_validate(settings.options)
        except ValidationError as error:
            raise TaskError(f"task.options of jsonl_math: {error}") from error
        payload = read_file(
            settings.path, setting="task.path", wanted="a jsonl_math task needs a file of question/answer lines"
        )
        digest = hashlib.sha256(payload).hexdigest()[:12]
        self._version = f"jsonl_math/{Path(settings.path).name}:{digest}@{_VERIFIER}"
        problems, self._kinds = parse_lines(payload, options, origin=settings.path)
        self._problems = ListedProblems(
            problems, seed=seed, holdout_percent=settings.holdout_percent, origin=settings.path
        )

    @property
    def version(self) -> str:
        return self._version

    @property
    def reference_kinds(self) -> Mapping[str, int]:
        """How many references of the file are of which kind; "skipped" counts those that were not understood."""
        return self._kinds

    @property
    def epoch_size(self) -> int:
        """Train problems, those with the same question included."""
        return self._problems.epoch_size

    def problem(self, split: Split, index: int) -> Problem:
        return self._problems.problem(split, index)

    def num_distinct(self, split: Split) -> int | None:
        return self._problems.num_distinct(split)

    def target(self, problem: Problem) -> str:
        return str(problem.metadata["solution"])

    def score(self, request: RewardRequest) -> RewardResult:
        gold = request.problem.answer
        try:
            judgement = judge(read_reference(gold), request.response)
        except MathError as error:
            return failed(f"{self._version}: the reference {gold!r} is not understood: {error}", "refused")
        except Exception as error:  # noqa: BLE001  (isolation: a bug met on one answer must not end the rollouts)
            return failed(f"{self._version}: {type(error).__name__}: {error}")
        found = printable(judgement.found[:_MAX_REASON_CHARACTERS])
        said = f"found {found}" if judgement.found else "found no answer"
        if judgement.found and not judgement.understood:
            said += ", which is no final answer in a form that is read"
        parts = {"correct": float(judgement.correct), "parsed": float(judgement.understood)}
        return scored(parts["correct"], parts, reasons=(f"expected {gold}, {said}",))

    def close(self) -> None:
        """Nothing to end."""


def parse_lines(payload: bytes, options: JsonlMathOptions, *, origin: str) -> tuple[list[Problem], Mapping[str, int]]:
    """Problems of a JSON-lines file, and how many references there are of each kind; blank lines are skipped.

    Raises:
      TaskError: with the number of the first damaged line, or those of the first references that are not understood.
    """
    problems: list[Problem] = []
    kinds: Counter[str] = Counter()
    refused: list[str] = []
    for where, number, record in records(payload, origin=origin):
        question = text_of(record, options.question_key, where)
        solution = text_of(record, options.answer_key, where)
        gold = gold_of(solution)
        if not gold:
            raise TaskError(f"{where}: nothing follows {MARK} in {options.answer_key!r}; expected the final answer")
        try:
            kinds[read_reference(gold).kind] += 1
        except MathError as error:
            refused.append(f"line {number}: {gold[:_MAX_REASON_CHARACTERS]!r}: {error}")
            continue
        problems.append(Problem(number, question, gold, {"line": number, "solution": solution}))
    if refused and options.unread_references == "refuse":
        raise TaskError(_refusal(refused, len(problems), origin))
    if not problems:
        raise TaskError(f'{origin} holds no problem; expected lines like {{"question": ..., "answer": ...}}')
    if refused:
        kinds["skipped"] = len(refused)
    return problems, dict(kinds)


def gold_of(solution: str) -> str:
    """What a solution ends with after its last mark, or the whole of it."""
    return solution.rsplit(MARK, 1)[-1].strip()


def _refusal(refused: list[str], num_read: int, origin: str) -> str:
    shown = "\n  ".join(refused[:_MAX_REFUSALS])
    more = f"\n  and {len(refused) - _MAX_REFUSALS} more" if len(refused) > _MAX_REFUSALS else ""
    return (
        f"{origin}: {len(refused)} of {len(refused) + num_read} reference answers are not understood; mend the lines, "
        f'or leave them out with task.options.unread_references="skip":\n  {shown}{more}'
    )
