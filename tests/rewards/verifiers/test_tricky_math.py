"""More than 500 answers to mathematics written by hand: no wrong one passes, and at most 1% of the right ones fail."""

from __future__ import annotations

import json
from pathlib import Path

from rewards.verifiers import create_verifier

#: a line holds a reference, answers that give it, and answers that don't
TABLE = [json.loads(line) for line in Path(__file__).with_name("tricky_math.jsonl").read_text().splitlines()]
_RIGHT = [(row["answer"], answer) for row in TABLE for answer in row["right"]]
_WRONG = [(row["answer"], answer) for row in TABLE for answer in row["wrong"]]


def _missed(cases: list[tuple[str | int | float, str]], expected: float) -> list[str]:
    verifier = create_verifier("math")
    found = [(reference, answer, verifier.judge(answer, {"answer": reference})) for reference, answer in cases]
    return [f"{reference} | {answer} | {result}" for reference, answer, result in found if result.score != expected]


def test_the_table_is_large_enough() -> None:
    assert len(_RIGHT) + len(_WRONG) >= 500
    assert len(set(map(str, _RIGHT))) + len(set(map(str, _WRONG))) == len(_RIGHT) + len(_WRONG)


def test_no_wrong_answer_passes() -> None:
    assert not _missed(_WRONG, 0.0)


def test_at_most_one_right_answer_in_a_hundred_fails() -> None:
    missed = _missed(_RIGHT, 1.0)
    assert len(missed) <= len(_RIGHT) // 100, "\n".join(missed)
