"""Splits that never mix, and problems that every process agrees on."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from rewards.contracts.task import Problem, Split, Task, TaskError
from rewards.settings.task import TaskSettings
from rewards.tasks.create import create_task
from rewards.tasks.problems import GeneratedProblems, ListedProblems, split_of
from tests.conftest import REPOSITORY
from tests.support.tasks import TWO_NUMBERS, addition, arithmetic, story

__all__ = ["addition"]  # a fixture


def test_splits_of_a_generated_task_share_no_question(addition: Task) -> None:
    train = {addition.problem("train", index).question for index in range(20_000)}
    validation = [addition.problem("validation", index).question for index in range(600)]
    heldout = [addition.problem("heldout", index).question for index in range(600)]
    assert len(set(validation)) == 600
    assert len(set(heldout)) == 600
    assert not train & set(validation)
    assert not train & set(heldout)
    assert not set(validation) & set(heldout)


def test_split_shares_are_as_set_and_texts_never_cross_when_the_share_grows() -> None:
    texts = [f"question {index}" for index in range(20_000)]
    for percent in (1, 5, 45):
        for split in ("validation", "heldout"):
            share = sum(split_of(text, percent) == split for text in texts) / len(texts)
            assert share == pytest.approx(percent / 100, abs=0.01)
    order = {"heldout": 0, "train": 1, "validation": 2}
    for text in texts[:2000]:
        small, large = split_of(text, 5), split_of(text, 45)
        assert small in (large, "train"), (text, order[small], order[large])


def test_a_split_ignores_surrounding_blanks() -> None:
    heldout = next(text for text in map(str, range(10_000)) if split_of(text, 5) == "heldout")
    assert split_of(f"  {heldout}\n", 5) == "heldout"


def test_random_access_equals_sequential_access() -> None:
    splits: tuple[Split, ...] = ("train", "validation", "heldout")
    wanted = [(split, index) for split in splits for index in range(40)]
    in_order = create_task(arithmetic(), seed=3)
    expected = {key: in_order.problem(*key) for key in wanted}
    random.Random(0).shuffle(wanted)
    shuffled = create_task(arithmetic(), seed=3)
    for key in wanted:
        assert shuffled.problem(*key) == expected[key]
        assert expected[key].index == key[1]


def test_another_seed_gives_other_problems_in_the_same_splits(addition: Task) -> None:
    other = create_task(arithmetic(), seed=4)
    mine = {addition.problem("heldout", index).question for index in range(500)}
    others = {other.problem("heldout", index).question for index in range(500)}
    assert mine != others
    assert all(split_of(question, 5) == "heldout" for question in mine | others)


def test_the_train_stream_repeats_after_num_problems() -> None:
    task = create_task(arithmetic(num_problems=50), seed=0)
    assert task.problem("train", 7).question == task.problem("train", 57).question
    assert task.problem("train", 57).index == 57


def test_distinct_generated_problems_stay_distinct_in_train() -> None:
    stream = GeneratedProblems(
        lambda index: Problem(index, f"question {index}", "", {}), num_problems=1000, holdout_percent=45, origin="list"
    )
    assert len({stream.problem("train", index).question for index in range(1000)}) == 1000


def test_too_few_distinct_heldout_problems_is_a_clear_error() -> None:
    tiny = {**TWO_NUMBERS, "min_digits": 1, "max_digits": 1}
    task = create_task(arithmetic(options=tiny), seed=0)  # 11 x 11 x 2 questions
    with pytest.raises(TaskError, match=r"asked for 101 distinct heldout .* only \d+; .*holdout_percent \(now 5\)"):
        task.problem("heldout", 100)
    with pytest.raises(TaskError, match="negative"):
        task.problem("train", -1)


def test_a_task_without_train_problems_says_so() -> None:
    held = next(text for text in map(str, range(10_000)) if split_of(text, 5) == "heldout")
    problem = Problem(0, held, "", {})
    generated = GeneratedProblems(lambda index: problem, num_problems=10, holdout_percent=5, origin="one")
    with pytest.raises(TaskError, match="one: none of 500 generated problems is in the train split"):
        generated.problem("train", 0)
    listed = ListedProblems([problem], seed=0, holdout_percent=5, origin="one")
    with pytest.raises(TaskError, match="no problem is in the train split"):
        listed.problem("train", 0)


def test_a_list_is_reshuffled_every_epoch_and_visits_everything() -> None:
    problems = [Problem(index, f"question {index}", str(index), {}) for index in range(400)]
    stream = ListedProblems(problems, seed=1, holdout_percent=10, origin="list")
    size = stream.num_distinct("train")
    assert size is not None
    first = [stream.problem("train", index).answer for index in range(size)]
    second = [stream.problem("train", index).answer for index in range(size, 2 * size)]
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(set(first)) == size
    # Back across the boundary: the order of an epoch doesn't depend on what was asked before.
    assert [stream.problem("train", index).answer for index in range(size)] == first
    other_seed = ListedProblems(problems, seed=2, holdout_percent=10, origin="list")
    assert [other_seed.problem("train", index).answer for index in range(size)] != first


def test_equal_questions_in_a_list_are_held_out_once() -> None:
    problems = [Problem(index, f"question {index % 200}", "", {}) for index in range(600)]
    stream = ListedProblems(problems, seed=1, holdout_percent=20, origin="list")
    count = stream.num_distinct("heldout")
    assert count is not None
    assert count > 20
    assert len({stream.problem("heldout", index).question for index in range(count)}) == count
    with pytest.raises(TaskError, match=f"only {count}"):
        stream.problem("heldout", count)


PRINT_PROBLEMS = """
import json, sys
from rewards.settings.task import TaskSettings
from rewards.tasks.create import create_task
if __name__ == "__main__":
    result = []
    for settings in json.loads(sys.argv[1]):
        task = create_task(TaskSettings.model_validate(settings), seed=11)
        for split in ("train", "validation", "heldout"):
            result += [[p.question, p.answer] for p in (task.problem(split, index) for index in range(20))]
    print(json.dumps(result))
    print(json.dumps([name in sys.modules for name in ("jax", "torch", "transformers", "aiohttp")]))
"""


def test_processes_agree_on_every_problem_and_import_no_jax() -> None:
    settings = [s.model_dump() for s in (arithmetic(), story(), TaskSettings(provider="reasoning_gym", name="gcd"))]
    outputs = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", PRINT_PROBLEMS, json.dumps(settings)],
            cwd=REPOSITORY,
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        problems, imported = done.stdout.splitlines()
        assert json.loads(imported) == [False] * 4
        outputs.append(json.loads(problems))
    here = []
    for each in settings:
        task = create_task(TaskSettings.model_validate(each), seed=11)
        for split in ("train", "validation", "heldout"):
            here += [[p.question, p.answer] for p in (task.problem(split, index) for index in range(20))]  # type: ignore[arg-type]
    assert outputs[0] == outputs[1] == here
