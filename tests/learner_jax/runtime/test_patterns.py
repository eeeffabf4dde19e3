"""A regular expression and a text that would keep a search busy for years end it within its bound."""

from __future__ import annotations

import re
import threading
import time

import pytest

from learner_jax.runtime import Pattern, PatternError, SlowPatternError

ENDLESS = [(r"(a|aa)+$", "a" * 80 + "b"), (r"(?:a{0,30}){30}$", "a" * 200 + "b"), (r"^(.|\w)*$(?<=\n\n)", "a" * 80)]


@pytest.mark.parametrize(("text", "answer"), ENDLESS)
def test_a_search_without_end_is_given_up(text: str, answer: str) -> None:
    pattern = Pattern(text, limit_s=0.05)
    for search in (pattern.found_in, pattern.last_in):
        started = time.thread_time()
        with pytest.raises(SlowPatternError, match=r"took longer than 0\.05 s on a text of \d+ characters"):
            search(answer)
        assert time.thread_time() - started < 5


def test_many_matches_that_each_are_in_time_are_bound_together() -> None:
    with pytest.raises(SlowPatternError):
        Pattern(r"(?:b|(?:a|aa)+c)", limit_s=0.05).last_in(("a" * 22 + "b") * 20_000)


def test_other_threads_go_on_meanwhile() -> None:
    turns = 0
    searching = threading.Event()

    def search() -> None:
        searching.set()
        with pytest.raises(SlowPatternError):
            Pattern(*ENDLESS[0][:1], limit_s=0.5).found_in(ENDLESS[0][1])

    thread = threading.Thread(target=search)
    thread.start()
    searching.wait(10)
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 20


@pytest.mark.parametrize(
    ("text", "answer", "last"),
    [
        (r"\d+", "1 and 22", "22"),
        (r"A: (\d+)", "A: 1 A: 22", "22"),
        (r"A:( \d+)?", "A: 1 A:", ""),
        (r"x", "abc", None),
        (r"(?i)answer is (?P<n>.)", "The ANSWER is\n The answer is 7", "7"),
        (r"(?<=#### )[-\d,]+$", "so #### 1,200", "1,200"),
        (r"^\s*$", "", ""),
    ],
)
def test_it_finds_what_re_finds(text: str, answer: str, last: str | None) -> None:
    assert Pattern(text).last_in(answer) == last
    assert Pattern(text).found_in(answer) == (re.search(text, answer) is not None)


def test_case_and_lines_count_unless_they_are_not_to() -> None:
    assert not Pattern("a.b").found_in("A\nB")
    assert Pattern("a.b", ignore_case=True, dot_all=True).found_in("A\nB")


@pytest.mark.parametrize("text", ["(", "[a", "(?P<n>a)(?P<n", "a{3,2}", "*", "(?<=a+*)"])
def test_what_is_no_regular_expression_is_named(text: str) -> None:
    with pytest.raises(PatternError, match="is no regular expression: "):
        Pattern(text)
