"""Answers kept up to a bound, found by text, reward and step, side by side by prompt."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.watched_runs import HOSTILE, held_out
from tools.dashboard.answers import Answer, AnswerBook, Wanted, held_out_answers
from tools.dashboard.texts import MAX_TEXT


def answer(
    prompt: str = "p", *, text: str = "a", step: int | None = 1, reward: float | None = 0.5, **more: Any
) -> Answer:
    fields = {"source": "training", "when": "", "expected": "", "verdict": "", "parts": {}, "versions": []} | more
    return Answer(prompt=prompt, answer=text, step=step, reward=reward, **fields)


def texts(book: AnswerBook, **wanted: Any) -> list[list[str]]:
    return [[one["answer"] for one in prompt["answers"]] for prompt in book.found(Wanted(**wanted))["shown"]]


@pytest.fixture
def book() -> AnswerBook:
    made = AnswerBook()
    made.add(0, [answer("1 + 1", text="two", step=3, reward=1.0), answer("1 + 2", text="FOUR", step=3, reward=0.0)])
    made.add(1, [answer("1 + 1", text="three", step=9, reward=None, source="held-out")])
    made.add(0, [answer("1 + 1", text="2", step=12, reward=0.5)])
    return made


def test_answers_to_a_prompt_stand_side_by_side_by_run_in_their_order(book: AnswerBook) -> None:
    assert texts(book) == [["two", "2", "three"], ["FOUR"]]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"text": "four"}, [["FOUR"]]),
        ({"text": "+ 2"}, [["FOUR"]]),
        ({"low": 0.5}, [["two", "2"]]),
        ({"high": 0.5}, [["2"], ["FOUR"]]),
        ({"low": 0.4, "high": 0.6}, [["2"]]),
        ({"first_step": 9}, [["2", "three"]]),
        ({"last_step": 8}, [["FOUR"], ["two"]]),
        ({"runs": frozenset({1})}, [["three"]]),
        ({"runs": frozenset()}, []),
        ({"source": "held-out"}, [["three"]]),
        ({"text": "nowhere"}, []),
        ({"per_page": 1, "page": 1}, [["FOUR"]]),
        ({"per_page": 1, "page": 2}, []),
    ],
)
def test_a_reader_finds_what_is_asked_for(book: AnswerBook, wanted: dict[str, Any], expected: list[list[str]]) -> None:
    assert texts(book, **wanted) == expected


def test_the_newest_answers_are_kept_up_to_a_number_and_a_size() -> None:
    book = AnswerBook(most=3, most_characters=1000)
    book.add(0, [answer(text=str(number)) for number in range(10)])
    assert texts(book) == [["7", "8", "9"]]
    book.add(0, [answer(text="x" * 600), answer(text="y" * 600)])
    assert texts(book) == [["y" * 600]]
    book.add(0, [answer(text="kept", source="held-out")])
    assert len(book) == 2


def test_a_run_that_begins_anew_is_forgotten(book: AnswerBook) -> None:
    book.forget(0)
    assert texts(book) == [["three"]]


def test_one_prompt_shows_its_newest_answers_and_says_how_many_are_left_out() -> None:
    book = AnswerBook()
    book.add(0, [answer(text=str(number)) for number in range(40)])
    (prompt,) = book.found(Wanted())["shown"]
    assert ([one["answer"] for one in prompt["answers"]], prompt["more"]) == ([str(n) for n in range(16, 40)], 16)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_texts_lose_what_could_act(text: str) -> None:
    (found,) = held_out_answers(held_out(4, 1.0, text), when="step 4", step=4)
    for shown in (found.prompt, found.answer, found.expected):
        assert shown.replace("\n", "").isprintable()
        assert len(shown) < MAX_TEXT + 100
    assert text.isprintable() or "\\" in found.answer
    assert found.versions == [5, 5]


def test_samples_that_are_none_are_left_out() -> None:
    odd = {
        "event": "heldout",
        "samples": [None, 5, {"prompt": 3}, {"prompt": "p", "score": "high", "answer": None}],
        "versions": [None, 2],
    }
    (found,) = held_out_answers(odd, when="before", step=0)
    assert (found.prompt, found.answer, found.reward, found.versions) == ("p", "", None, [2])
