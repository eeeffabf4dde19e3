"""Math problems from a file of {"question", "answer"} lines, verified by the math-verify library in killable processes.

math-verify compares the mathematical values of the reference and of the expression that it finds in the answer (the
boxed one if there is one, else the last). It guards itself with SIGALRM, which raises outside the main thread and can't
interrupt a long computation in C; here a process pool does the guarding.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewards.config import TaskSettings
from rewards.isolation import VerifierError, VerifierPool, printable
from rewards.protocol import Problem, RewardRequest, RewardResult, Split, TaskError, failed, scored
from rewards.splits import ListedProblems

#: GSM8K's mark before the final answer (Cobbe et al., arXiv 2110.14168).
_MARK = "####"


class JsonlMathOptions(BaseModel):
    """`task.options` of a jsonl_math: names of the two keys in a line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question_key: str = Field("question", min_length=1)
    answer_key: str = Field("answer", min_length=1)


class JsonlMathTask:
    """Math problems from a file; implements `rewards.protocol.Task`."""

    def __init__(self, settings: TaskSettings, *, seed: int, deadline_s: float, num_workers: int) -> None:
        try:
            options = JsonlMathOptions.model_validate(settings.options)
        except ValidationError as error:
            raise TaskError(f"task.options of jsonl_math: {error}") from error
        payload = _read(settings.path)
        self._version = (
            f"jsonl_math/{Path(settings.path).name}:{hashlib.sha256(payload).hexdigest()[:12]}"
            f"@math-verify-{importlib.metadata.version('math-verify')}"
        )
        self._problems = ListedProblems(
            parse_lines(payload, options, origin=settings.path),
            seed=seed,
            holdout_percent=settings.holdout_percent,
            origin=settings.path,
        )
        self._pool = VerifierPool("rewards.jsonl_math", {}, num_workers=num_workers, deadline_s=deadline_s)

    @property
    def version(self) -> str:
        return self._version

    def problem(self, split: Split, index: int) -> Problem:
        return self._problems.problem(split, index)

    def num_distinct(self, split: Split) -> int | None:
        return self._problems.num_distinct(split)

    def target(self, problem: Problem) -> str:
        return str(problem.metadata["solution"])

    def score(self, request: RewardRequest) -> RewardResult:
        response = request.response
        # After the mark the file's own convention says where the answer is; else math-verify looks for it.
        candidate = response.rsplit(_MARK, 1)[1] if _MARK in response else response
        gold = request.problem.answer
        try:
            verified = self._pool.call({"gold": gold, "candidate": candidate.strip()}, key=gold)
        except VerifierError as error:
            return failed(f"{self._version}: {error}", error.failure)
        return scored(verified.score or 0.0, verified.parts, reasons=tuple(map(printable, verified.reasons)))

    def close(self) -> None:
        self._pool.close()


def parse_lines(payload: bytes, options: JsonlMathOptions, *, origin: str) -> list[Problem]:
    """Problems of a JSON-lines file; blank lines are skipped.

    Raises:
      TaskError: with the number of the first bad line.
    """
    problems = []
    for number, line in enumerate(payload.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{origin}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{where} is not JSON: {error}") from None
        question = _text(record, options.question_key, where)
        solution = _text(record, options.answer_key, where)
        gold = solution.rsplit(_MARK, 1)[-1].strip()
        if not gold:
            raise TaskError(f"{where}: nothing follows {_MARK} in {options.answer_key!r}; expected the final answer")
        problems.append(Problem(number, question, gold, {"line": number, "solution": solution}))
    if not problems:
        raise TaskError(f'{origin} holds no problem; expected lines like {{"question": ..., "answer": ...}}')
    return problems


def _text(record: Any, key: str, where: str) -> str:
    if not isinstance(record, dict):
        raise TaskError(f"{where} is a {type(record).__name__}, expected an object")
    if key not in record:
        raise TaskError(f"{where} has no key {key!r}, only {', '.join(map(repr, record))}; see task.options")
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{where}: {key!r} is {value!r}, expected text")
    return value


def _read(path: str) -> bytes:
    if not path:
        raise TaskError("task.path is empty; a jsonl_math task needs a file of question/answer lines")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TaskError(f"task.path {path!r} can't be read: {error.strerror}") from error


def create(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The side that runs in verifier processes: from `{"gold", "candidate"}` to the fields of `Verified`."""
    from math_verify import parse, verify

    # It warns at every call that its own guard is off; the process is the guard.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def score(request: Mapping[str, Any]) -> dict[str, Any]:
        gold = request["gold"]
        # A reference such as `x=3, 4` may be LaTeX or plain; math-verify tries both.
        reference = parse(gold, parsing_timeout=None)
        if not reference:
            raise ValueError(f"the reference answer {gold!r} is no mathematical expression")
        found = parse(request["candidate"], parsing_timeout=None)
        correct = float(verify(reference, found, timeout_seconds=None))
        said = f"found {str(found[-1])[:200]}" if found else "found no expression in the answer"
        parts = {"correct": correct, "parsed": float(bool(found))}
        return {"score": correct, "parts": parts, "reasons": [f"expected {gold}, {said}"]}

    # The children inherit what the libraries load and cache when they are first used.
    score({"gold": "$x + 1$", "candidate": "so it is $\\frac{2}{2} + x$ or 12 or 1/2"})
    return score
