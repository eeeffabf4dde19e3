"""Datasets of reasoning-gym: the library's own scores, and which datasets are refused and why."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import reasoning_gym

from rewards.contracts.task import Problem, Task, TaskError
from rewards.settings.task import TaskSettings
from rewards.tasks.create import create_task
from tests.support.tasks import addition, answer, arithmetic, story

__all__ = ["addition"]  # a fixture


def test_arithmetic_is_scored_by_the_library(addition: Task) -> None:
    assert addition.version.startswith("reasoning_gym/basic_arithmetic@0.")
    for index in range(50):
        problem = addition.problem("train", index)
        left, operator, right = problem.question.removeprefix("Calculate ").removesuffix(".").split()
        value = int(left) + int(right) if operator == "+" else int(left) - int(right)
        assert problem.answer == addition.target(problem) == str(value)
        correct = answer(addition, problem, f" {value}\n")
        assert (correct.score, correct.verdict, correct.reasons) == (1.0, "pass", ())
        wrong = answer(addition, problem, str(value + 1000))
        assert wrong.verdict == "fail"
        assert wrong.score < 1
        assert wrong.reasons == (f"expected '{value}'",)


def test_partial_credit_is_the_librarys_own(addition: Task) -> None:
    problem = Problem(0, "Calculate 20 + 26.", "46", {})
    result = answer(addition, problem, "it is 46")
    assert result.score == pytest.approx(2 / 8)
    assert result.parts == {"library_score": result.score}
    assert result.verdict == "fail"


def test_stored_samples_of_a_dataset_with_its_own_verifier_pass(shared_data: Path) -> None:
    lines = (shared_data / "reasoning_gym" / "countdown.jsonl").read_text().splitlines()
    task = create_task(TaskSettings(provider="reasoning_gym", name="countdown"), seed=0, num_workers=1)
    try:
        for record in map(json.loads, islice(lines, 30)):
            problem = Problem(0, record["question"], record["answer"], record["metadata"])
            assert answer(task, problem, record["answer"]).verdict == "pass"
            # Any other expression of the same numbers and value is as good: the verifier works from the metadata.
            assert answer(task, replace(problem, answer="?"), f"({record['answer']})").verdict == "pass"
            assert answer(task, problem, record["answer"] + " + 1").verdict == "fail"
    finally:
        task.close()


def test_a_dataset_that_draws_its_problems_up_beforehand_is_a_list() -> None:
    settings = TaskSettings(provider="reasoning_gym", name="gsm_symbolic", options={"size": 300})
    task = create_task(settings, seed=0, num_workers=1)
    try:
        sizes = {split: task.num_distinct(split) for split in ("train", "validation", "heldout")}  # type: ignore[arg-type]
        assert all(sizes.values())
        assert sum(size or 0 for size in sizes.values()) <= 300
        assert task.problem("train", 10_000).question
    finally:
        task.close()


def test_mistakes_in_reasoning_gym_settings_are_explained() -> None:
    with pytest.raises(TaskError, match=r"'basic_arithmetc' is no reasoning_gym .*mean basic_arithm.*gcd"):
        create_task(arithmetic(name="basic_arithmetc"), seed=0)
    with pytest.raises(TaskError, match=r"basic_arithmetic has no option min_term .*its options: min_terms"):
        create_task(arithmetic(options={"min_term": 2}), seed=0)
    with pytest.raises(TaskError, match=r"basic_arithmetic refuses task.options: .*max_terms must be >= min_terms"):
        create_task(arithmetic(options={"min_terms": 9}), seed=0)
    with pytest.raises(TaskError, match=r"set run\.seed"):
        create_task(arithmetic(options={"seed": 1}), seed=0)


def test_a_dataset_whose_own_answers_do_not_pass_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = reasoning_gym.factory.DATASETS["spell_backward"][0]
    monkeypatch.setattr(scorer, "score_answer", lambda self, answer, entry: 0.4)
    with pytest.raises(TaskError, match=r"spell_backward can't be used .*own answers 0\.4, .*expected 1"):
        create_task(TaskSettings(provider="reasoning_gym", name="spell_backward"), seed=0)


def test_a_dataset_whose_problems_are_no_plain_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = reasoning_gym.factory.DATASETS["spell_backward"][0]
    monkeypatch.setattr(
        dataset, "__getitem__", lambda self, index: {"question": "?", "answer": "a", "metadata": {"x": object()}}
    )
    with pytest.raises(TaskError, match=r"spell_backward can't be used: a problem's data: object is not plain data"):
        create_task(TaskSettings(provider="reasoning_gym", name="spell_backward"), seed=0)


def test_a_dataset_that_depends_on_the_hash_seed_needs_a_fixed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TaskSettings(provider="reasoning_gym", name="ransom_note")
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    with pytest.raises(TaskError, match="ransom_note makes different problems .* set PYTHONHASHSEED=0"):
        create_task(settings, seed=0)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    task = create_task(settings, seed=0)
    assert "ransom note" in task.problem("train", 0).question
    task.close()
    with pytest.raises(TaskError, match="list_functions can't be used: it makes different problems"):
        create_task(TaskSettings(provider="reasoning_gym", name="list_functions"), seed=0)


def test_a_task_without_reference_answers_has_no_target() -> None:
    task = create_task(TaskSettings(provider="reasoning_gym", name="graph_color"), seed=0, num_workers=1)
    try:
        with pytest.raises(TaskError, match="no reference answers"):
            task.target(task.problem("train", 0))
    finally:
        task.close()
    writer = create_task(story(), seed=0)
    with pytest.raises(TaskError, match="no reference answers"):
        writer.target(writer.problem("train", 0))
