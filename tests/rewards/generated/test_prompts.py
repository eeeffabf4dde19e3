"""Generated prompts: the same for the same seed, each with what its verifier needs, of every kind that is asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from configs.load import load_config
from rewards.generated import arithmetic, instructions
from rewards.generated.instruction_prompts import _KINDS
from rewards.verifiers.instructions import judge
from tools.assembly import build_task

#: An answer by kind that follows it, for any arguments that are drawn; {about} is to the point of any request.
FOLLOWING = {
    "punctuation:no_comma": "{about}",
    "change_case:english_lowercase": "{about}",
    "change_case:english_capital": "{about}",
    "keywords:existence": "{about} {words}",
    "length_constraints:number_words": "{about}",
    "length_constraints:number_sentences": "{about}",
    "startend:quotation": '"{about}"',
    "startend:end_checker": "{about} {end}",
    "detectable_format:title": "<<Well>>\n{about}",
    "detectable_format:number_bullet_lists": "{bullets}",
    "detectable_content:postscript": "{about}\nP.S. They fly, too.",
    "detectable_format:number_highlighted_sections": "*well* {about}",
}
CHANGED = {"change_case:english_lowercase": str.lower, "change_case:english_capital": str.upper}


def to_the_point(row: dict[str, Any]) -> str:
    return f"This is about {row['kwargs'][-2]['keywords'][0]} and says what there is to say of it."


def following(row: dict[str, Any], kind: str) -> str:
    given, about = row["kwargs"][0], to_the_point(row)
    answer = FOLLOWING[kind].format(
        about=about,
        words=" and ".join(given.get("keywords", [])),
        end=given.get("end_phrase", ""),
        bullets="\n".join([f"* {about}"] * given.get("num_bullets", 0)),
    )
    return CHANGED.get(kind, str)(answer)


@pytest.mark.parametrize("kind", _KINDS)
def test_every_kind_can_be_followed_and_missed(kind: str) -> None:
    for row in instructions(20, kinds=[kind]):
        assert judge(following(row, kind), row).score == 1.0, row
        missed = judge(f"Well, it is so. {to_the_point(row)} " * 4, row)
        assert missed.reasons == (f"not followed: {kind}",), row


@pytest.mark.parametrize(
    ("answer", "missed"),
    [
        ("<<Bees>>", "length_constraints:number_words"),
        ("<<Bees>> People should not use any commas, and so they say nothing of bees.", "keywords:forbidden_words"),
        ("<<Hello>> People have many reasons for what they like and for what they do.", "keywords:existence"),
    ],
)
def test_an_answer_that_keeps_its_instruction_and_says_nothing_earns_nothing(answer: str, missed: str) -> None:
    row = next(
        r
        for r in instructions(2000, kinds=["detectable_format:title"])
        if r["question"].startswith("Why do people like bees")
    )
    result = judge(answer, row)
    assert result.score == 0.0
    assert result.reasons == (f"not followed: {missed}",)
    assert result.parts["detectable_format:title"] == 1.0


def test_a_second_instruction_contradicts_no_first_one() -> None:
    rows = list(instructions(400, pairs=0.5))
    numbers = Counter(len(row["instruction_id_list"]) for row in rows)
    assert 120 < numbers[5] < 280
    for row in rows:
        kinds = row["instruction_id_list"][:-3]
        assert len(set(kinds)) == len(kinds) == len(row["kwargs"]) - 3
        assert set(kinds[1:]) <= {"punctuation:no_comma", "keywords:existence"}


def test_rows_are_the_same_for_the_same_seed_and_differ_for_another() -> None:
    assert list(instructions(30)) == list(instructions(40))[:30]
    assert list(instructions(30)) != list(instructions(30, seed=1))
    assert list(arithmetic(30)) == list(arithmetic(40))[:30]
    assert list(arithmetic(30)) != list(arithmetic(30, seed=1))


def test_wrong_arguments_are_refused_with_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"unknown kinds: 'punctuation:comma'; known: punctuation:no_comma, "):
        list(instructions(1, kinds=["punctuation:comma"]))
    with pytest.raises(ValueError, match="pairs from 0 to 1, got .* and 2"):
        list(instructions(1, pairs=2))


def test_answers_of_arithmetic_are_those_of_the_question() -> None:
    for row in arithmetic(300):
        numbers = [int(word.strip("?.")) for word in row["question"].split() if word.strip("?.").isdigit()]
        a, b = numbers
        assert int(row["answer"]) in (a + b, a - b, a * b)
        assert int(row["answer"]) >= 0


def test_the_shipped_run_has_three_instructions_for_each_sum_and_enough_that_is_held_out() -> None:
    config = load_config("smollm2")
    task = build_task(config)
    try:
        sources = Counter(task.problem("train", index).source for index in range(400))
        assert sources == {"instructions": 300, "arithmetic": 100}
        held_out = {task.problem("heldout", index).question for index in range(config.evaluation.num_problems)}
        assert not held_out & {task.problem("train", index).question for index in range(800)}
    finally:
        task.close()
