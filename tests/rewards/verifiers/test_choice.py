"""Which choice an answer takes."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.verifiers import create_verifier

CHOICES = ["red", "green", "blue", "12"]
TAKES_C = [
    *("C", "(C)", "c", "(c)", "C.", "C)", "**C**", "\\boxed{C}", "\\boxed{\\text{(C)}}", "#### C", "Option C", "blue"),
    *("The answer is C.", "Answer: C", "**Answer:** C", "The correct option is C", "Final answer: **C) blue**"),
    *("The answer is (C) because A is too small.", "I think A. No wait.\nAnswer: C", "C. blue", "C, not A"),
    *("A cat sat.\nC", "Answer: A. red. But the final answer: C", "Answer: \\(C\\)", "<answer>C</answer>"),
    *("The best choice here would be C.", "I would go with C", "The answer is blue.", "The answer is a blue thing: C"),
]
TAKES_NOT_C = [
    *(
        "",
        "A",
        "D: 12",
        "either A or C",
        "A or C",
        "A and C",
        "A, B, C, D",
        "The answer is not C",
        "C is wrong",
        "C isn't",
    ),
    *("C\n\nSo the answer is D: 12", "maybe C or D", "(A)(C)", "C/D", "The answer is C or D.", "red", "\\boxed{C, D}"),
    *("I can't say", "\\boxed{A} and then C", "CC", "Cat", "\\boxed{C} or \\boxed{D}", "It's not C", "neither C nor D"),
]


@pytest.mark.parametrize("answer", TAKES_C)
def test_answers_that_take_c(answer: str) -> None:
    result = create_verifier("choice").judge(answer, {"answer": "C", "choices": CHOICES})
    assert result.score == 1, result


@pytest.mark.parametrize("answer", TAKES_NOT_C)
def test_answers_that_do_not(answer: str) -> None:
    result = create_verifier("choice").judge(answer, {"answer": "C", "choices": CHOICES})
    assert (result.score, result.finding) in [(0, "wrong"), (0, "unparseable")]


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "C"},
        {"answer": "(c)", "options": CHOICES},
        {"answer": 2, "choices": CHOICES},
        {"answer": "blue", "choices": CHOICES},
        {"answer": "C) blue", "choices": CHOICES},
        {"answer": "C", "choices": {"A": "red", "C": "blue"}},
        {"answer": "C", "choices": {"label": ["A", "B", "C"], "text": ["red", "green", "blue"]}},
        {"answer": ["C"], "choices": CHOICES},
    ],
)
def test_ways_to_write_the_row(row: dict[str, Any]) -> None:
    verifier = create_verifier("choice")
    assert verifier.judge("The answer is C", row).score == 1
    assert verifier.judge("The answer is A", row).score == 0
    assert verifier.refusal(row) == ""


def test_several_right_choices_are_all_needed() -> None:
    row = {"answer": ["A", "C"], "choices": CHOICES}
    verifier = create_verifier("choice")
    assert [verifier.judge(answer, row).score for answer in ("A, C", "C and A", "A", "A, B, C", "A or C")] == [
        1,
        1,
        0,
        0,
        0,
    ]


def test_labels_may_be_numbers() -> None:
    row = {"answer": "2", "choices": {"label": ["1", "2", "3"], "text": ["x", "y", "z"]}}
    verifier = create_verifier("choice")
    assert [verifier.judge(answer, row).score for answer in ("2", "The answer is (2).", "y", "1", "1 or 2")] == [
        1,
        1,
        1,
        0,
        0,
    ]


@pytest.mark.parametrize(
    "row", [{"answer": 7}, {"answer": "violet", "choices": CHOICES}, {"answer": "A", "choices": ["x"]}]
)
def test_rows_that_do_not_fit_are_refused(row: dict[str, Any]) -> None:
    assert create_verifier("choice").judge("A", row).verdict == "refused"
