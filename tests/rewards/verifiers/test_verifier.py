"""Verifiers by name, and what they do with rows that they can't judge."""

from __future__ import annotations

import subprocess
import sys

import pytest

from learner_jax.runtime import DoorError
from rewards.contracts import RewardResult
from rewards.verifiers import VERIFIER, Plain, Row, RowError, create_verifier

HOSTILE = [
    "",
    " ",
    "\x00",
    "\ud800",
    "\udfff x",
    "\u202e",
    "x" * 1_000_000,
    "(" * 100_000,
    "\\boxed{" * 20_000,
    "\n" * 100_000,
]
NAMES = sorted(set(VERIFIER.built_in) - {"code"})
PLAIN = ["choice", "exact", "format", "fuzzy", "math"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DoorError, match="did you mean math\\? known: .*exact.*fuzzy.*math"):
        create_verifier("mth")


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("row", [{}, {"answer": None}, {"answer": {}}, {"answer": []}, {"answer": float("nan")}])
def test_a_row_that_cannot_be_judged_is_refused_and_says_why(name: str, row: Row) -> None:
    verifier = create_verifier(name)
    result = verifier.judge("4", {**row, "format": 7} if name == "format" else row)
    assert (result.score, result.verdict) == (None, "refused")
    assert "row" in result.reasons[0]
    assert verifier.refusal({**row, "format": 7} if name == "format" else row)
    verifier.close()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("answer", HOSTILE)
def test_hostile_answers_fail_and_never_raise(name: str, answer: str) -> None:
    result = create_verifier(name).judge(answer, {"answer": "B", "choices": ["1", "2"]})
    assert (result.score, result.verdict) == (0.0, "fail")


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_row_is_refused_by_each(name: str) -> None:
    verifier = create_verifier(name)
    expected = (0.0, "fail") if name == "format" else (None, "refused")
    result = verifier.judge("4", {})
    assert (result.score, result.verdict) == expected
    verifier.close()


def test_what_a_verifier_raises_is_an_error_and_no_score() -> None:
    def broken(answer: str, row: Row) -> RewardResult:
        raise RowError("no column") if answer else KeyError("bug")

    assert Plain(broken).judge("x", {}).verdict == "refused"
    result = Plain(broken).judge("", {})
    assert (result.score, result.verdict) == (None, "error")
    assert "KeyError" in result.reasons[0]


def test_verifiers_load_without_jax_torch_and_sympy() -> None:
    code = (
        "import sys; from rewards.verifiers import VERIFIER, create_verifier\n"
        f"for name in {PLAIN}: create_verifier(name).judge('4', {{'answer': '4'}})\n"
        "print([name for name in ('jax', 'torch', 'vllm', 'sympy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
