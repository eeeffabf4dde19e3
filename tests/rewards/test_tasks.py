"""Tasks: splits that never mix, problems that every process agrees on, verifiers that never raise."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from rewards.contracts.task import Problem, RewardRequest, Split, Task, TaskError, is_failure
from rewards.settings.task import TaskSettings
from rewards.tasks.create import create_task
from rewards.tasks.jsonl_math import JsonlMathTask
from rewards.tasks.keyword_story import KeywordStoryTask, openings, readability
from rewards.tasks.problems import GeneratedProblems, ListedProblems, split_of
from tests.conftest import REPOSITORY

TWO_NUMBERS = {
    "min_terms": 2,
    "max_terms": 2,
    "min_digits": 2,
    "max_digits": 2,
    "operators": ["+", "-"],
    "allow_parentheses": False,
}


def arithmetic(**settings: Any) -> TaskSettings:
    fields = {"provider": "reasoning_gym", "name": "basic_arithmetic", "options": TWO_NUMBERS, **settings}
    return TaskSettings.model_validate(fields)


def story(**options: Any) -> TaskSettings:
    return TaskSettings(provider="keyword_story", options=options)


def math_file(path: Path, **options: Any) -> TaskSettings:
    return TaskSettings(provider="jsonl_math", path=str(path), options=options)


def answer(task: Task, problem: Problem, response: str, finish_reason: str = "stop") -> Any:
    return task.score(RewardRequest(problem, response, finish_reason))


@pytest.fixture(scope="module")
def addition() -> Task:
    return create_task(arithmetic(), seed=3)


@pytest.fixture(scope="module")
def gsm8k(shared_data: Path) -> Iterator[Task]:
    task = create_task(math_file(shared_data / "gsm8k" / "train.jsonl"), seed=0, deadline_s=2)
    yield task
    task.close()


# Splits


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
    print(json.dumps([name in sys.modules for name in ("jax", "torch", "transformers")]))
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
        assert json.loads(imported) == [False, False, False]
        outputs.append(json.loads(problems))
    here = []
    for each in settings:
        task = create_task(TaskSettings.model_validate(each), seed=11)
        for split in ("train", "validation", "heldout"):
            here += [[p.question, p.answer] for p in (task.problem(split, index) for index in range(20))]  # type: ignore[arg-type]
    assert outputs[0] == outputs[1] == here


# reasoning-gym


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


# Math from a file


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("#### 10", 1.0),
        ("so \\boxed{10}", 1.0),
        ("It costs $10.00", 1.0),
        ("#### 9", 0.0),
        ("\\boxed{9} \\boxed{10}", 0.0),
        ("-10", 0.0),
        ("10 #### 9", 0.0),
        ("\\boxed{9} #### 10", 1.0),
        ("", 0.0),
    ],
)
def test_answers_are_compared_as_numbers(gsm8k: Task, response: str, score: float) -> None:
    assert answer(gsm8k, Problem(0, "", "10", {}), response).score == score


def test_an_answer_that_never_evaluates_is_wrong_at_once(gsm8k: Task) -> None:
    result = answer(gsm8k, Problem(0, "", "10", {}), "9**9**9**9**9")
    assert (result.verdict, result.score, result.parts) == ("fail", 0.0, {"correct": 0.0, "parsed": 1.0})


def test_damaged_math_files_are_explained(tmp_path: Path) -> None:
    good = '{"question": "1+1?", "answer": "#### 2"}\n'
    cases = {
        "line 2 is not JSON": good + "{oops\n",
        "line 3 has no key 'answer', only 'question'": good + "\n" + '{"question": "?"}\n',
        "line 1: 'answer' is 7, expected text": '{"question": "?", "answer": 7}\n',
        "line 1 is a list, expected an object": "[1]\n",
        "nothing follows ####": '{"question": "?", "answer": "so ####"}\n',
        "holds no problem": "\n\n",
    }
    for message, content in cases.items():
        path = tmp_path / "file.jsonl"
        path.write_text(content)
        with pytest.raises(TaskError, match=message):
            create_task(math_file(path), seed=0)
    with pytest.raises(TaskError, match=r"missing\.jsonl' can't be read: No such file"):
        create_task(math_file(tmp_path / "missing.jsonl"), seed=0)
    with pytest.raises(TaskError, match=r"task\.path is empty"):
        create_task(TaskSettings(provider="jsonl_math"), seed=0)
    with pytest.raises(TaskError, match="question_ky"):
        create_task(math_file(tmp_path / "file.jsonl", question_ky="q"), seed=0)


def test_the_version_names_the_file_by_content(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    versions = []
    for value in (2, 3):
        path.write_text(json.dumps({"question": "1+1?", "answer": f"#### {value}"}) + "\n")
        task = JsonlMathTask(math_file(path), seed=0)
        versions.append(task.version)
        task.close()
    assert versions[0] != versions[1]
    assert versions[0].startswith("jsonl_math/file.jsonl:")
    assert versions[0].split("@")[1] == versions[1].split("@")[1] == "final-answer-1"


# Stories

GOOD_STORY = (
    "Lily was very happy. They went home and had some cake. Then all of the friends came to the house to help with "
    "the garden, and they played together until the sun went down. Everyone smiled. The end."
)
WORDS = ("happy", "help", "friends", "together")


@pytest.fixture(scope="module")
def writer() -> Task:
    return create_task(story(), seed=0)


def story_result(task: Task, text: str, finish_reason: str = "stop") -> Any:
    return answer(task, task.problem("train", 0), text, finish_reason)


def test_a_story_with_every_word_that_ends_is_a_pass(writer: Task) -> None:
    result = story_result(writer, GOOD_STORY)
    assert result.parts == {"words": 1.0, "ended": 1.0, "readable": 1.0}
    assert (result.score, result.verdict, result.reasons) == (1.0, "pass", ())


def test_each_part_of_the_story_score_counts(writer: Task) -> None:
    cut = story_result(writer, GOOD_STORY, "length")
    assert cut.score == pytest.approx(0.8)
    assert cut.reasons == ("the story doesn't end within the token budget",)
    missing = story_result(writer, GOOD_STORY.replace("help", "helper").replace("happy", "unhappy"))
    assert missing.score == pytest.approx(0.8 * 2 / 4 + 0.2)
    assert missing.reasons == ("word 'happy' is missing", "word 'help' is missing")
    assert story_result(writer, GOOD_STORY.upper()).score == 1.0


@pytest.mark.parametrize(
    "spam",
    [
        " ".join(WORDS),
        " ".join(WORDS * 8),
        ". ".join(WORDS * 3) + ".",
        GOOD_STORY + " happy" * 20,
        GOOD_STORY + " He was happy. She was happy. It was happy. Max was happy. Tom was so happy.",
        GOOD_STORY + " and then he went" * 15,
        "happy 1 friends 2 together 3 help 4 smiled 5 #6 $7 &8 9 0 " + GOOD_STORY,
        "",
        "!!! ???",
    ],
)
def test_spam_scores_less_than_half_of_a_story(writer: Task, spam: str) -> None:
    result = story_result(writer, spam)
    assert result.score < 0.5
    assert result.verdict == "fail"


@pytest.mark.parametrize(
    "text",
    [
        "Max saw a cat and then he sat down",
        "Max saw a cat and then he sat down " * 4,
        "Max saw a b1g cat. H3 was $o kind! Then his mom came out of the house to call him, and he ran to her at once.",
        "Max was happy, so happy, and saw the friends of his friends, who were there to help. They help him. "
        "His friends sat together. All together, they help.",
        "happy friends help together and then Max went to his mom and told her what he saw in the park that day, "
        "and she was glad that he came back so soon.",
        "Max was happy. One day he met a cat who was not happy. Then he was not happy. His mom gave the cat some milk, "
        "and after that the cat was happy, and in the end his mom was very happy too, since she liked cats a lot.",
    ],
    ids=["short", "repeated", "odd", "dense", "adjacent", "spam"],
)
def test_each_guard_alone_lowers_readability(text: str) -> None:
    assert readability(text, WORDS, min_words=25, max_uses=3) < 0.9


def test_openings_are_distinct_and_name_no_default_keyword() -> None:
    texts = openings()
    assert len(texts) == len(set(texts))
    assert not any(word in text.lower().replace(".", "").split() for text in texts for word in WORDS)
    assert "{" not in "".join(texts)


def test_story_options_are_checked() -> None:
    with pytest.raises(TaskError, match="are not single words"):
        create_task(story(words=["two words"]), seed=0)
    with pytest.raises(TaskError, match="ended_weight"):
        create_task(story(ended_weight=2), seed=0)
    with pytest.raises(TaskError, match="word"):
        create_task(story(wrds=["a"]), seed=0)
    assert KeywordStoryTask(story(words=["Cat", "cat"]), seed=0).problem("train", 0)


def test_a_real_greedy_story_is_fully_readable(shared_data: Path) -> None:
    text = json.loads((shared_data / "llama260k_stories" / "greedy_golden.json").read_text())["text"]
    assert readability(text, WORDS, min_words=25, max_uses=3) == 1.0


# No answer makes a verifier raise

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
