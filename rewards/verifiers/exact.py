"""`exact`: the answer is the reference, letter by letter, less the blanks around it."""

from __future__ import annotations

import unicodedata

from rewards.contracts import RewardResult, scored
from rewards.verifiers.columns import texts
from rewards.verifiers.verifier import Plain, Row


def create(*, deadline_s: float, num_workers: int) -> Plain:
    return Plain(judge)


def judge(answer: str, row: Row) -> RewardResult:
    """Whether the answer is `row["answer"]`, or one of them if it is a list; both in Unicode's form NFC.

    Raises:
      RowError: the row has no such column.
    """
    references = texts(row)
    given = _plain(answer)
    is_right = any(given == _plain(reference) for reference in references)
    return scored(float(is_right), {}, reasons=(f"expected {references[0]!r:.200}",))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
