"""Verifiers never raise, whatever the answer."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewards.contracts.task import Problem, Task, is_failure
from tests.support.tasks import addition, answer, gsm8k, writer

__all__ = ["addition", "gsm8k", "writer"]  # fixtures


ADVERSARIAL = [
    "",
    " \n\t ",
    "NaN",
    "inf",
    "-0",
    "1e400",
    "None",
    "\x00\x01",
    "\ud800",
    "٣٤",
    "½",
    "🎉" * 1000,
    "a\u0301" * 500,
    "x" * 300_000,
    "1" * 20_000,
    "(" * 3000,
    "\\boxed{",
    "\\frac{1}{0}",
    "0/0",
    "__import__('os')._exit(3)",
    "{question}",
    "'" * 50,
]


def _random_answers(count: int) -> list[str]:
    rng = random.Random(0)
    alphabet = "0123456789+-*/^(){}[]\\.,;:$%#'\"abcxyzé\u2019\u202e\ud83d \n\t"
    return ["".join(rng.choices(alphabet, k=rng.randint(0, 60))) for _ in range(count)]


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_no_answer_makes_verifiers_in_place_raise(addition: Task, writer: Task, finish_reason: str) -> None:
    for task in (addition, writer):
        problem = task.problem("train", 0)
        for response in ADVERSARIAL + _random_answers(500):
            result = answer(task, problem, response, finish_reason)
            assert result.verdict in ("pass", "fail")
            assert 0 <= result.score <= 1


def test_no_answer_makes_the_math_verifier_raise(gsm8k: Task) -> None:
    problem = gsm8k.problem("train", 0)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda r: answer(gsm8k, problem, r), ADVERSARIAL + _random_answers(2000)))
    assert all(is_failure(result.verdict) or 0 <= result.score <= 1 for result in results)
    # The pool survived all of it.
    assert answer(gsm8k, problem, problem.answer).verdict == "pass"


def test_a_raising_verifier_is_an_error_with_its_reason(addition: Task) -> None:
    broken = Problem(0, "Calculate 1 + 1.", 2, {})  # type: ignore[arg-type]
    result = answer(addition, broken, "3")
    assert (result.verdict, result.score) == ("error", None)
    assert "TypeError" in result.reasons[0]
