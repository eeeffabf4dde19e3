"""Lengths of prompts: which problems are looked at, what counts as too long, and which prompts can be golden."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from rewards.contracts import Problem, TaskError
from serving_bridge.checks.prompt_survey import Survey, golden_prompts, survey
from serving_bridge.checks.prompts import dialog_findings, length_findings, problem_findings, supervised_findings


@dataclass
class Lengths:
    """A task whose problems have prompts of these lengths, and the encoder that says so.

    Attributes:
      distinct: what the task says of their number.
      asked: indices of the problems that were made.
    """

    lengths: tuple[int, ...]
    distinct: int | None = None
    max_prompt_tokens: int = 4
    asked: list[int] = field(default_factory=list)

    def num_distinct(self, split: str) -> int | None:
        return self.distinct

    def problem(self, split: str, index: int) -> Problem:
        self.asked.append(index)
        if index >= len(self.lengths):
            raise TaskError(f"{split} has no problem {index}")
        return Problem(index, "x" * self.lengths[index], "", {})

    def target(self, problem: Problem) -> str:
        return "yes"

    def tokens(self, problem: Problem) -> list[int]:
        return [7] * len(problem.question)

    def encode(self, problem: Problem) -> list[int] | None:
        return self.tokens(problem) if len(problem.question) <= self.max_prompt_tokens else None

    def supervised(self, problem: Problem, target: str) -> tuple[list[int], list[bool]]:
        tokens = [*self.tokens(problem), *([8] * len(target))]
        return tokens, [True] * len(tokens)


def look(world: Any, most: int, **options: Any) -> Survey:
    return survey(world, world, "train", most=most, **({"limit_s": 60.0} | options))


def test_as_many_prompts_are_looked_at_as_are_asked_for_and_there() -> None:
    found = look(Lengths((3, 5, 2)), 2)
    assert (list(found.lengths), found.available, found.is_whole) == ([3, 5], None, False)
    found = look(Lengths((3, 5, 2)), 9)
    assert (list(found.lengths), found.available, found.is_whole) == ([3, 5, 2], 3, True)
    world = Lengths((3, 5, 2, 6), distinct=3)
    found = look(world, 9)
    assert (list(found.lengths), found.available, found.is_whole) == ([3, 5, 2], 3, True)
    assert world.asked == [0, 1, 2]
    found = look(Lengths((3, 5, 2), distinct=3), 2)
    assert (list(found.lengths), found.available, found.is_whole) == ([3, 5], 3, False)
    with pytest.raises(TaskError, match="has no problem 0"):
        look(Lengths(()), 9)


def test_one_prompt_is_looked_at_however_little_time_there_is() -> None:
    seconds = itertools.count(0.0)
    found = look(Lengths((3, 5, 2)), 9, limit_s=2.0, clock=lambda: next(seconds))
    assert (list(found.lengths), found.available, found.is_whole) == ([3], None, False)
    late = itertools.count(0.0, 100.0)
    assert list(look(Lengths((3, 5, 2)), 9, limit_s=2.0, clock=lambda: next(late)).lengths) == [3]


def test_golden_prompts_are_the_first_that_fit_and_have_a_second_token() -> None:
    world: Any = Lengths((1, 5, 2, 4, 3))
    assert [len(prompt) for prompt in golden_prompts(world, world, 2)] == [2, 4]
    assert world.asked == [0, 1, 2, 3]
    with pytest.raises(TaskError, match="num_golden is 4, but of 5 validation problems 3 make prompts of 2 to 4"):
        golden_prompts(world, world, 4)
    few: Any = Lengths((3, 3, 3), distinct=2)
    with pytest.raises(TaskError, match="of 2 validation problems 2 make"):
        golden_prompts(few, few, 3)
    assert few.asked == [0, 1]


def findings(lengths: tuple[int, ...], limit: int, *, is_whole: bool = True) -> list[tuple[str, str, str, str]]:
    found = length_findings(Survey("train", lengths, None, is_whole), limit=limit, answer=10)
    return [(one.expected, one.got, one.change, one.severity) for one in found]


def test_prompts_beyond_the_limit_are_told_with_what_would_take_them() -> None:
    assert findings((3, 5, 2), 5) == []
    ((expected, got, change, severity),) = findings((3, 6, 5, 2), 4, is_whole=False)
    assert expected == "at least 6, the longest prompt"
    assert got == "4: 2 of 4 train prompts that were looked at are longer and would be skipped"
    assert "for prompts of 6 tokens" in change
    assert change.endswith("need 16")
    assert severity == "warning"
    ((expected, got, change, severity),) = findings((3, 6, 5), 2)
    assert (expected, severity) == ("at least 3, the shortest prompt", "error")
    assert got == "2: all of 3 train prompts are longer and would be skipped"
    assert change.endswith("need 16")


def test_a_split_has_as_many_problems_as_are_asked_for() -> None:
    def told(number: int, **options: Any) -> list[str]:
        world: Any = Lengths((3, 4, 2), distinct=3)
        asked: Any = {"heldout": ("evaluation.num_problems", number)}
        given = {"asked": asked, "answer": 1, "train_sample": 0, "limit_s": 60.0} | options
        return [finding.expected for finding in problem_findings(world, world, **given)]

    assert told(3) == []
    assert told(4) == ["at most 3, the heldout problems that there are"]
    assert told(1, train_sample=2) == []


def test_answers_to_imitate_fit_into_a_sequence() -> None:
    def told(length: int, sample: int) -> list[str]:
        world: Any = Lengths((3, 6, 2))
        return [f.expected for f in supervised_findings(world, world, sequence_length=length, sample=sample)]

    assert told(9, 3) == told(6, 1) == told(1, 0) == []
    assert told(8, 3) == ["at least 9, the longest of 3 prompts with the answer to imitate"]


@pytest.mark.parametrize(("turns", "length", "told"), [(1, 99, 0), (2, 5, 1), (2, 4, 0), (2, 1, 0), (2, 0, 1)])
def test_what_is_said_after_a_wrong_answer_fits(turns: int, length: int, told: int) -> None:
    encoder: Any = SimpleNamespace(
        max_prompt_tokens=4,
        tokenizer=SimpleNamespace(eos_ids=(1, 2)),
        observation=lambda text, after: [9] * length if (text, after) == ("Again", 1) else [9] * 99,
    )
    assert len(list(dialog_findings(encoder, feedback="Again", turns=turns))) == told
