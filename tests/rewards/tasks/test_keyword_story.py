"""Stories: what a good one scores, and which tricks score less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts.task import Task, TaskError
from rewards.tasks.create import create_task
from rewards.tasks.keyword_story import KeywordStoryTask, openings, readability
from tests.support.tasks import answer, story, writer

__all__ = ["writer"]  # a fixture


GOOD_STORY = (
    "Lily was very happy. They went home and had some cake. Then all of the friends came to the house to help with "
    "the garden, and they played together until the sun went down. Everyone smiled. The end."
)

WORDS = ("happy", "help", "friends", "together")


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
