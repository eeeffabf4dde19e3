"""Words in a row that a suite's problems share with training prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rewards.contracts import Problem
from tests.support.rollout_world import AdditionTask
from tools.evaluation.contamination import Training, overlaps, words_of
from tools.evaluation.errors import SuiteError
from tools.evaluation.problems import OpenSuite, SuiteProblem
from tools.evaluation.suites import SuiteSettings


def suite(*questions: str) -> OpenSuite:
    settings = SuiteSettings.model_validate({"name": "s", "source": "jsonl", "path": "x", "score": {"reward": "exact"}})
    problems = [SuiteProblem(f"p{i}", "", Problem(i, text, "", {})) for i, text in enumerate(questions)]
    return OpenSuite(settings, problems, AdditionTask(), None, "h", ())


def training(folder: Path, *prompts: str, column: str = "question", ngram: int = 5) -> Training:
    (folder / "train.jsonl").write_text("".join(json.dumps({column: prompt}) + "\n" for prompt in prompts))
    return Training(str(folder / "train.jsonl"), column=column, ngram=ngram)


def test_so_many_words_in_a_row_are_an_overlap_and_one_less_is_none(tmp_path: Path) -> None:
    given = suite("one two three four five six", "one two three four and no more", "quite another thing, is it not")
    (found,) = overlaps([given], training(tmp_path, "so: ONE, two; three (four) FIVE!", "nothing of the others here"))
    assert found.as_fields() == {
        "source": "train.jsonl",
        "ngram": 5,
        "num_training_prompts": 2,
        "num_overlapping": 1,
        "num_identical": 0,
        "share": 1 / 3,
        "problems": ["p0"],
    }


def test_how_far_it_is_can_be_told(tmp_path: Path) -> None:
    numbers: list[int] = []
    overlaps([suite("x")], training(tmp_path, *(str(number) for number in range(20_001))), numbers.append)
    assert numbers == [10_000, 20_000]


def test_a_short_question_overlaps_as_a_whole(tmp_path: Path) -> None:
    (found,) = overlaps(
        [suite("What is Q?", "Is Q what?", "?!")], training(tmp_path, "tell me what is q now", "Is q what")
    )
    assert (found.problems, found.num_identical) == (("p0", "p1"), 1)


def test_it_is_what_comparing_every_pair_finds(tmp_path: Path) -> None:
    draw, words = random.Random(5), [f"w{i}" for i in range(12)]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(80)]
    given, prompts = suite(*texts[:30]), texts[30:]
    (found,) = overlaps([given], training(tmp_path, *prompts, ngram=3))
    expected = []
    for problem in given.problems:
        own = words_of(problem.question)
        length = min(3, len(own))
        grams = [f" {' '.join(own[i : i + length])} " for i in range(len(own) - length + 1)]
        if any(gram in f" {prompt} " for gram in grams for prompt in prompts):
            expected.append(problem.id)
    assert 0 < len(expected) < 30
    assert list(found.problems) == expected


def test_suites_have_an_overlap_each(tmp_path: Path) -> None:
    first, second = overlaps(
        [suite("a b c d e"), suite("v w x y z", "a b c d e f")], training(tmp_path, "a b c d e", column="prompt")
    )
    assert (first.problems, second.problems) == (("p0",), ("p1",))


def test_the_train_split_of_a_runs_task_is_looked_at() -> None:
    from configs.load import load_config
    from rewards.tasks import create_task

    config = load_config("demo")
    task = create_task(config.task, seed=config.run.seed)
    trained, held = (task.problem(split, 0).question for split in ("train", "heldout"))
    task.close()
    (found,) = overlaps([suite(trained, held)], Training("demo", ngram=50, limit=50))
    assert found.num_training_prompts == 50
    assert "p0" in found.problems
    assert found.num_identical >= 1


def test_what_can_not_be_read_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(
        SuiteError,
        match=r"line 1 has no 'question', only 'prompt'; name the column of the prompts with --contamination-column",
    ):
        overlaps([suite("x")], Training(training(tmp_path, "a", column="prompt").source))
    with pytest.raises(SuiteError, match="holds no training prompts"):
        overlaps([suite("x")], training(tmp_path))
    with pytest.raises(SuiteError, match="No such file"):
        overlaps([suite("x")], Training(str(tmp_path / "none.jsonl")))
