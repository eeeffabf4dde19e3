"""Tricky answers to format and instructions, judged right by hand; and huge ones, in bounded time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from rewards.instructions import KINDS
from rewards.verifiers import create_verifier

HERE = Path(__file__).parent
FILES = {"instructions": HERE.parent / "instructions" / "tricky.jsonl", "format": HERE / "tricky_format.jsonl"}
#: what regular expressions, parsers and Unicode's algorithms take long for, repeated
BOMBS = (
    "*",
    "* ",
    "**a",
    "[a",
    "<<a",
    "```\n",
    "a.",
    "p. s",
    "\n ",
    "\0",
    "\ud800",
    "- ",
    "[",
    '{"a":',
    "9",
    "e\u0301\u0316",
)


@pytest.mark.parametrize("name", FILES)
def test_every_verdict_is_that_of_a_careful_reader(name: str) -> None:
    verifier = create_verifier(name)
    lines = [json.loads(line) for line in FILES[name].read_text().splitlines()]
    judged = [(line, verifier.judge(line["answer"], line["row"])) for line in lines]
    assert [line for line, result in judged if (result.score == 1.0) is not line["label"]] == []
    assert {line["label"] for line in lines} == {True, False}
    assert len(lines) >= {"instructions": 150, "format": 30}[name]


def test_repetitions_take_time_in_proportion() -> None:
    """Processor time, since others share the machine. Ten times the text may take 30 times as long, and never 100."""
    verifier = create_verifier("instructions")

    def seconds(kind: str, text: str) -> float:
        begin = time.thread_time()
        row = {"instruction_id_list": [kind], "kwargs": [arguments.get(kind, {})], "mode": "loose"}
        verifier.judge(text, row)
        return time.thread_time() - begin

    rows = [json.loads(line)["row"] for line in FILES["instructions"].read_text().splitlines()]
    arguments = {row["instruction_id_list"][0]: (row["kwargs"] or [{}])[0] for row in rows}
    slow = []
    for kind in KINDS:
        for bomb in BOMBS:
            text = (bomb * 10_000)[:10_000]
            if (long := seconds(kind, text)) > 0.15 and long > 30 * seconds(kind, text[:1000]):
                slow.append((kind, bomb, long))
    assert slow == []


def test_marks_without_end_on_one_letter_are_not_sorted() -> None:
    row = {"instruction_id_list": ["keywords:forbidden_words"], "kwargs": [{"forbidden_words": ["x"]}]}
    begin = time.thread_time()
    result = create_verifier("instructions").judge("e" + "\u0301\u0316" * 100_000, row)
    assert (result.score, time.thread_time() - begin < 2) == (1.0, True)


def test_an_answer_of_megabytes_follows_nothing_and_has_no_form() -> None:
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    result = create_verifier("instructions").judge("x" * 10_000_000, row)
    assert (result.score, result.reasons) == (0.0, ("the answer has 10000000 characters, at most 500000 are read",))
    for bomb, form in (("<think>", {}), ("#", {"sections": ["Plan"]}), ("*", {"sections": ["Plan"]})):
        assert create_verifier("format").judge((bomb * 10_000_000)[:10_000_000], form).score == 0.0
