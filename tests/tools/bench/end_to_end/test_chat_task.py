"""The task of the chat workload: the same problems everywhere, of many lengths, scored as its module says."""

from __future__ import annotations

import pytest

from rewards.contracts import PASS_SCORE, RewardRequest
from rewards.settings import TaskSettings
from rewards.tasks import create_task
from tools.bench.end_to_end.chat_task import ChatTask

SETTINGS = TaskSettings(provider="tools.bench.end_to_end.chat_task:ChatTask")


def make(seed: int = 0) -> ChatTask:
    task = create_task(SETTINGS, seed=seed)
    assert isinstance(task, ChatTask)
    return task


def test_problems_follow_from_the_seed_and_differ_in_length_and_split() -> None:
    train = [make().problem("train", index).question for index in range(64)]
    assert train == [make().problem("train", index).question for index in range(64)]
    assert train != [make(seed=1).problem("train", index).question for index in range(64)]
    assert max(map(len, train)) > 2.5 * min(map(len, train))
    assert not {make().problem("heldout", index).question for index in range(64)} & set(train)


@pytest.mark.parametrize(
    ("used", "finish_reason", "score"),
    [(3, "stop", 1.0), (3, "length", 0.8), (1, "stop", 0.8 / 3 + 0.2), (0, "length", 0)],
)
def test_a_score_is_of_the_wanted_words_and_of_the_end(used: int, finish_reason: str, score: float) -> None:
    problem = make().problem("train", 5)
    words = problem.metadata["words"]
    assert len(set(words)) == 3
    response = f"Dear you, {', '.join(word.upper() for word in words[:used])}!"
    result = make().score(RewardRequest(problem, response, finish_reason))
    assert result.score == pytest.approx(score)
    assert (result.verdict == "pass") == (score >= PASS_SCORE)


def test_a_word_inside_another_does_not_count() -> None:
    problem = make().problem("train", 5)
    response = " ".join(f"{word}s" for word in problem.metadata["words"])
    assert make().score(RewardRequest(problem, response, "stop")).score == pytest.approx(0.2)
