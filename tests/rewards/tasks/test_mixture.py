"""Several sources as one task: the pattern is exact, answers go home, and splits of all sources stay apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rewards.contracts import RewardRequest, TaskError, prompt_text
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from rewards.tasks.interleaved import place, whole_shares
from tests.support.user_folder import working_in


@settings(max_examples=100, deadline=None)
@given(shares=st.lists(st.integers(1, 40), min_size=1, max_size=6), periods=st.integers(1, 3), start=st.integers(0, 99))
def test_the_pattern_is_exact_over_each_period_and_smooth_within(shares: list[int], periods: int, start: int) -> None:
    total = sum(shares)
    found = [place(index, shares) for index in range(total * (start + periods))][total * start :]
    for period in range(periods):
        part = found[period * total : (period + 1) * total]
        counts = Counter(source for source, _ in part)
        assert [counts[source] for source in range(len(shares))] == shares
    for source, share in enumerate(shares):
        within = [inner for number, inner in found if number == source]
        assert within == list(range(start * share, (start + periods) * share)), "one by one, none left out"
        running = 0
        for count, (number, _) in enumerate(found, start=1):
            running += number == source
            assert abs(running - count * share / total) < len(shares)


def test_the_pattern_of_a_far_index_needs_none_before_it() -> None:
    assert place(2**31, [3, 1]) == place(2**31, [3, 1])
    assert place(4 * 10**15, [3, 1])[0] in (0, 1)


def test_weights_become_whole_shares() -> None:
    assert whole_shares([0.75, 0.25]) == [3, 1]
    assert whole_shares([1.0, 1.0, 1.0]) == [1, 1, 1]
    assert whole_shares([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert min(whole_shares([1e-9, 1.0])) > 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    for name, size in (("small", 40), ("large", 120)):
        rows = [{"question": f"{name} {n}", "answer": str(n)} for n in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with working_in(tmp_path):
        yield tmp_path


def mixed(*sources: dict[str, Any], **more: Any) -> Any:
    tree = {"provider": "rows", "reward": "exact", "holdout_percent": 10, "sources": list(sources), **more}
    return create_task(TaskSettings.model_validate(tree), seed=0)


SMALL, LARGE = {"data": "small.jsonl"}, {"data": "large.jsonl"}


def test_without_weights_every_row_comes_once_before_any_comes_again() -> None:
    task = mixed(SMALL, LARGE)
    sizes = {label: source.epoch_size for label, source in task.sources.items()}
    total = sum(sizes.values())
    for epoch in range(3):
        asked = [task.problem("train", epoch * total + index) for index in range(total)]
        assert len({problem.question for problem in asked}) == total
        assert Counter(problem.source for problem in asked) == sizes
    assert sum(task.shares.values()) == pytest.approx(1)


def test_weights_are_kept_while_each_source_keeps_its_own_epochs() -> None:
    task = mixed(SMALL | {"weight": 3}, LARGE | {"weight": 1})
    size = task.sources["small"].epoch_size
    asked = [task.problem("train", index) for index in range(8 * size)]
    assert [problem.index for problem in asked] == list(range(8 * size))
    for start in range(0, 8 * size, 4):
        assert Counter(problem.source for problem in asked[start : start + 4]) == {"small": 3, "large": 1}
    small = [problem.question for problem in asked if problem.source == "small"]
    for epoch in range(6):
        assert len(set(small[epoch * size : (epoch + 1) * size])) == size


def test_every_process_mixes_alike() -> None:
    one, other = mixed(SMALL, LARGE), mixed(SMALL, LARGE)
    indices = [5, 0, 140, 3]
    for split in ("train", "validation", "heldout"):
        few = indices if split == "train" else indices[1::2]
        assert [one.problem(split, n % 8) for n in few] == [other.problem(split, n % 8) for n in few]
    assert one.version == other.version
    assert mixed(SMALL).version != one.version


def test_held_out_problems_are_of_all_sources_and_each_once() -> None:
    task = mixed(SMALL | {"weight": 1}, LARGE | {"weight": 1})
    number = task.num_distinct("heldout")
    asked = [task.problem("heldout", index) for index in range(number)]
    assert len({problem.question for problem in asked}) == number
    few = min(task.sources["small"].num_distinct("heldout"), task.sources["large"].num_distinct("heldout"))
    assert Counter(problem.source for problem in asked[: 2 * few]) == {"small": few, "large": few}
    train = {task.problem("train", index).question for index in range(1000)}
    assert not train & {problem.question for problem in asked}
    with pytest.raises(
        TaskError, match=f"asked for {number + 1} distinct heldout problems, but there are only {number}"
    ):
        task.problem("heldout", number)


def test_answers_are_scored_by_the_reward_of_their_source(folder: Path) -> None:
    (folder / "halves.py").write_text("def half(prompt, answer, row):\n    return 0.5\n")
    task = mixed(SMALL, LARGE | {"reward": "halves:half", "score_confined": False, "score_processes": 1})
    try:
        for index in range(6):
            problem = task.problem("train", index)
            result = task.score(RewardRequest(problem, problem.answer, "stop"))
            assert result.score == (1.0 if problem.source == "small" else 0.5)
            assert task.target(problem) == problem.answer
    finally:
        task.close()


def test_generators_mix_with_files_by_weight() -> None:
    sums = {"provider": "reasoning_gym", "name": "basic_arithmetic", "weight": 1}
    task = mixed(SMALL | {"weight": 1}, sums)
    asked = [task.problem("train", index) for index in range(6)]
    assert [problem.source for problem in asked] == ["basic_arithmetic", "small"] * 3
    assert task.num_distinct("train") is None
    assert {task.problem("heldout", index).source for index in range(4)} == {"basic_arithmetic", "small"}
    with pytest.raises(TaskError, match="'basic_arithmetic' makes problems without end; give every source a weight"):
        mixed(SMALL, {key: value for key, value in sums.items() if key != "weight"})


def test_a_source_has_a_template_and_a_system_message_of_its_own() -> None:
    task = mixed(SMALL | {"prompt_template": "Q: {question}"}, LARGE | {"system": "Be brief."}, chat=True)
    small, large = (
        next(p for n in range(9) if (p := task.problem("train", n)).source == s) for s in ("small", "large")
    )
    assert prompt_text(small, "{question}") == f"Q: {small.question}"
    assert large.prompt == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": large.question},
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": [SMALL | {"weight": 1}, LARGE]}, "some sources have a weight and others none"),
        ({"sources": [SMALL, SMALL]}, "two sources are called 'small'; give each a label of its own"),
        ({"sources": [SMALL | {"wieght": 1}]}, "wieght"),
        ({"sources": [SMALL | {"weight": 0}]}, "greater than 0"),
        ({"sources": [SMALL | {"label": "a b"}]}, "pattern"),
        ({"sources": [SMALL | {"chat": True}]}, "chat"),
        ({"sources": [SMALL], "data": "large.jsonl"}, "data stands beside sources"),
        ({"sources": [SMALL | {"system": "x"}]}, "sources: system needs chat = true"),
        ({"sources": "small.jsonl"}, "tuple"),
    ],
)
def test_what_can_not_be_mixed_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TaskSettings.model_validate({"provider": "rows", "reward": "exact", **change})


def test_settings_of_rows_are_refused_by_providers_that_would_not_see_them() -> None:
    for more in ({"heldout_data": "large.jsonl"}, {"curriculum": {"column": "level"}}):
        settings = TaskSettings.model_validate({"provider": "reasoning_gym", "name": "gcd", **more})
        with pytest.raises(TaskError, match=r"is for rows, and task\.provider is 'reasoning_gym'"):
            create_task(settings, seed=0)


def test_files_of_all_sources_are_known() -> None:
    tree = {"provider": "rows", "sources": [SMALL, {"data": "my:rows", "heldout_data": "a/b", "label": "x"}]}
    found = TaskSettings.model_validate(tree).all_files()
    assert found == {"task.sources.0.data": "small.jsonl", "task.sources.1.heldout_data": "a/b"}


def test_an_error_names_the_source() -> None:
    with pytest.raises(TaskError, match=r"source 'none': task\.data 'none\.jsonl' can't be read: No such file"):
        mixed(SMALL, {"data": "none.jsonl"})


def test_sources_take_after_the_task_and_stay_so_when_saved() -> None:
    tree = {"provider": "rows", "reward": "exact", "holdout_percent": 7, "sources": [SMALL, LARGE | {"reward": "math"}]}
    found = TaskSettings.model_validate(tree)
    assert [source.holdout_percent for source in found.sources] == [7, 7]
    assert [source.reward for source in found.sources] == ["exact", "math"]
    again = TaskSettings.model_validate(found.model_dump(exclude_none=True))
    assert again == found
