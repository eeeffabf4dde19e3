"""Exact, fuzzy, format and math: which answers pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from rewards.contracts import RewardResult
from rewards.verifiers import Verifier, answer_format, create_verifier


def judged(name: str, given: str, **row: Any) -> RewardResult:
    return create_verifier(name).judge(given, row)


@pytest.mark.parametrize(
    ("answer", "reference", "passes"),
    [
        (" Paris\n", "Paris", True),
        ("paris", "Paris", False),
        ("Paris.", "Paris", False),
        ("4", 4, True),
        ("4.0", 4.0, True),
        ("5", [4, "5"], True),
        ("6", [4, "5"], False),
        ("e\u0301", "\u00e9", True),
        ("true", True, True),
    ],
)
def test_exact(answer: str, reference: Any, passes: bool) -> None:
    assert judged("exact", answer, answer=reference).score == float(passes)


@pytest.mark.parametrize(
    ("answer", "reference", "passes"),
    [
        ("the Eiffel tower!", "Eiffel Tower", True),
        ("Eifel Tower", "Eiffel Tower", True),
        ("Tower", "Eiffel Tower", False),
        ("A", "a", True),
        ("A", "B", False),
        ("1234567891", "1234567890", False),
        ("in the year 1971 it was founded", "in the year 1972 it was founded", False),
        ("-5 degrees", "5 degrees", False),
        ("1,000 people", "1000 people", True),
        ("?", "?", True),
        ("Paris " * 1000, "Paris", False),
        ("Rome", ["Paris", "Rome"], True),
        ("STRASSE", "straße", True),
    ],
)
def test_fuzzy(answer: str, reference: Any, passes: bool) -> None:
    assert judged("fuzzy", answer, answer=reference).score == float(passes)


def test_the_threshold_of_fuzzy_is_a_column_and_the_similarity_a_part() -> None:
    assert judged("fuzzy", "abcdx", answer="abcde", threshold=0.8).parts == {"similarity": pytest.approx(0.8)}
    assert judged("fuzzy", "abcdx", answer="abcde", threshold=0.8).score == 1
    assert judged("fuzzy", "abcdx", answer="abcde", threshold=0.81).score == 0
    assert judged("fuzzy", "x", answer="x", threshold=0).verdict == "refused"
    assert judged("fuzzy", "x", answer="x" * 30_000).verdict == "refused"


@pytest.mark.parametrize(
    ("answer", "row", "why"),
    [
        ("<think>a</think>\n<answer>b</answer>", {}, ""),
        ("<think>a</think><answer></answer>", {}, "holds nothing"),
        ("<answer>b</answer><think>a</think>", {}, "stands before"),
        ("<think>a</think><answer>b</answer> more", {}, "after the last tag"),
        ("so <think>a</think><answer>b</answer>", {}, "stands before"),
        ("<think>a</think>", {}, "<answer> stands 0 times"),
        ("<think>a<think>b</think></think><answer>b</answer>", {}, "<think> stands 2 times"),
        ("<think>a<answer>b</think></answer>", {}, "stands before"),
        ("</think><think>a", {"tags": ["think"]}, "holds nothing|stands before"),
        ("<plan>1</plan>", {"tags": ["<plan>"]}, ""),
        ("# Plan\nx\n## Result\ny", {"sections": ["Plan", "Result"]}, ""),
        ("**Plan:** x\n**Result:** y", {"sections": ["plan", "result"]}, ""),
        ("Plan: x\nResult: y", {"sections": ["Plan", "Result"]}, ""),
        ("# Result\ny\n# Plan\nx", {"sections": ["Plan", "Result"]}, "another order"),
        ("# Plan\n# Result\ny", {"sections": ["Plan", "Result"]}, "is empty"),
        ("# Plan\nx", {"sections": ["Plan", "Result"]}, "stands 0 times"),
        ("42", {"regex": r"\d+"}, ""),
        ("42 or so", {"regex": r"\d+"}, "doesn't match"),
        ("a\nb", {"format": {"regex": "a.b"}}, ""),
        ("ab", {"format": "ab"}, ""),
    ],
)
def test_format(answer: str, row: dict[str, Any], why: str) -> None:
    result = judged("format", answer, **row)
    assert result.score == float(not why), result
    assert not why or any(word in result.reasons[0] for word in why.split("|")), result


@pytest.fixture
def form() -> Iterator[Verifier]:
    verifier = create_verifier("format", deadline_s=1.5)
    yield verifier
    verifier.close()


def test_a_regular_expression_that_never_ends_is_a_timeout_by_the_clock(form: Verifier) -> None:
    """Its process is killed, and the next answer is judged."""
    begin = time.monotonic()
    result = form.judge("a" * 60 + "!", {"regex": "(a|a)*$"})
    assert (result.score, result.verdict) == (None, "timeout")
    assert result.reasons == ("row.regex took more than 1.5 s (task.score_timeout_s)",)
    assert time.monotonic() - begin < 30, "the start of a process, and the deadline"
    assert form.judge("aaa", {"regex": "(a|a)*$"}).verdict == "pass"


def test_a_slow_regular_expression_gets_its_time_in_a_process_of_its_own(
    form: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_format, "_AT_ONCE_S", 1e-9)
    answer, row = "<b>x</b>" + "a" * 5000 + "!", {"tags": ["b"], "regex": r"(?:a|\W|\w)*?!"}
    slow = form.judge(answer, row)
    monkeypatch.undo()
    assert slow == form.judge(answer, row)
    assert slow.parts == {"tags": 0.0, "regex": 1.0}


@pytest.mark.parametrize("row", [{"regex": "("}, {"tags": "a b"}, {"tags": [7, {}]}, {"format": {"regx": "a"}}])
def test_a_format_that_is_not_understood_refuses_the_row(row: dict[str, Any]) -> None:
    assert judged("format", "x", **row).verdict == "refused"


@pytest.mark.parametrize(
    ("answer", "reference", "finding"),
    [
        ("so \\boxed{4}", "4", "correct"),
        ("4", 4, "correct"),
        ("4.5", 4.5, "correct"),
        ("\\boxed{5}", "4", "wrong"),
        ("\\boxed{\\foo{4}}", "4", "unparseable"),
        ("", "4", "unparseable"),
        ("4", "2+2 = 4\n#### 4", "correct"),
        ("18", "16 - 3 = 13\nA: 18", "correct"),
        ("18", "We get $16+2$, so it is \\boxed{18}.", "correct"),
        ("16", "We get $16+2$, so it is \\boxed{18}.", "wrong"),
        ("\\boxed{\\int_0^1 x\\,dx}", "$\\int_0^1 x dx$", "correct"),
        ("\\boxed{\\int_0^2 x\\,dx}", "$\\int_0^1 x dx$", "wrong"),
        ("The answer is July 4, 2020.", "July 4, 2020", "correct"),
        ("The answer is July 4, 2021.", "July 4, 2020", "wrong"),
    ],
)
def test_math_says_correct_wrong_or_unparseable(answer: str, reference: Any, finding: str) -> None:
    result = judged("math", answer, answer=reference)
    assert (result.finding, result.score) == (finding, float(finding == "correct")), result


def test_a_reference_that_math_does_not_read_is_told_before_a_run() -> None:
    verifier = create_verifier("math")
    assert "not read here" in verifier.refusal({"answer": "\\int x"})
    assert verifier.refusal({"answer": "4"}) == ""
