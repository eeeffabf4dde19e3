"""`math`: the answer's final value equals the reference, by Weir's own parser of final answers.

A reference that the parser doesn't read is compared as text, so that it can't pass a wrong answer.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from rewards.contracts import RewardResult, scored
from rewards.mathematics import MARK, MathError, Reference, final_answer, judge, read_reference
from rewards.verifiers.columns import text
from rewards.verifiers.verifier import Plain, Row, RowError

_MAX_SHOWN = 200
_ANSWER_LINE = re.compile(r"^[^\S\n]*A:", re.M)
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|quad|qquad|[bB]igg?[lr]?)(?![a-zA-Z])"
    r"|\\[,;:! ]|[\s$~]|\\\(|\\\)|\\\[|\\\]"
)
#: braces around one character mean nothing
_LONE = re.compile(r"(?<!\\)\{([^\W_])\}")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|operatorname|mbox)\s*\{([^{}]*)\}")


class MathVerifier:
    """Judges final answers; implements `rewards.verifiers.Verifier`."""

    def __init__(self) -> None:
        self._plain = Plain(_judge)

    def judge(self, answer: str, row: Row) -> RewardResult:
        """Whether the final answer is the value of `row["answer"]`, of which what follows its last `####` counts.

        The finding is "correct", "wrong" or "unparseable"; an answer of the last kind is wrong.
        """
        return self._plain.judge(answer, row)

    def refusal(self, row: Row) -> str:
        """Why the reference is not understood."""
        try:
            _read(text(row))
        except (MathError, RowError) as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Nothing to end."""


def create(*, deadline_s: float, num_workers: int) -> MathVerifier:
    return MathVerifier()


def _judge(answer: str, row: Row) -> RewardResult:
    gold = text(row).strip()
    if not gold:
        raise RowError("row.answer is empty")
    try:
        reference = _read(gold)
    except MathError as error:
        return _judge_as_text(gold, answer, why=str(error))
    judgement = judge(reference, answer)
    finding = "correct" if judgement.correct else "wrong" if judgement.understood else "unparseable"
    said = f"found {judgement.found[:_MAX_SHOWN]!r}" if judgement.found else "found no answer"
    if judgement.found and not judgement.understood:
        said += ", which is no final answer in a form that is read"
    parts = {"parsed": float(judgement.understood)}
    reason = f"expected {reference.text[:_MAX_SHOWN]!r}, {said}"
    return scored(float(judgement.correct), parts, reasons=(reason,), finding=finding)


@lru_cache(maxsize=16_384)
def _read(gold: str) -> Reference:
    """The reference in an answer column: what follows its last mark, else all of it, else what its solution ends with.

    Raises:
      MathError: it is not understood; says why of the first of these.
    """
    marked = gold.rsplit(MARK, 1)[-1].strip()
    try:
        return read_reference(marked)
    except MathError as error:
        if MARK in gold or ("\n" not in gold and "\\boxed" not in gold and not _ANSWER_LINE.search(gold)):
            raise
        try:
            return read_reference(final_answer(gold))
        except MathError:
            raise error from None


def _judge_as_text(gold: str, answer: str, *, why: str) -> RewardResult:
    wanted, found = gold.rsplit(MARK, 1)[-1].strip(), final_answer(answer)
    if MARK not in gold and "\\boxed" in gold:
        wanted = final_answer(gold)
    is_right = bool(_folded(wanted)) and _folded(wanted) == _folded(found)
    reason = f"expected {wanted[:_MAX_SHOWN]!r}, found {found[:_MAX_SHOWN]!r}; compared as text: {why}"
    finding = "correct" if is_right else "wrong" if found else "unparseable"
    return scored(float(is_right), {"parsed": 0.0}, reasons=(reason,), finding=finding)


def _folded(latex: str) -> str:
    """A text without layout: what differs in spacing, fraction style, text commands or a final full stop is equal."""
    kept = unicodedata.normalize("NFKC", latex).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    kept = _TEXT_COMMAND.sub(lambda match: match[1], kept)
    kept = _LONE.sub(lambda match: match[1], kept)
    is_formula = bool(re.search(r"[\\^_=]", kept))
    kept = _LAYOUT.sub("", kept).rstrip(".")
    return kept if is_formula else kept.casefold()
