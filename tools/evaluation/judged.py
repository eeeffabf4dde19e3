"""One sample of one problem: what was said, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.evaluation.asking import Measurement

_MAX_REASONS = 5
_MAX_REASON_CHARACTERS = 500


@dataclass(frozen=True)
class Judged:
    """One sample of one problem.

    Attributes:
      messages: (role, text) of the whole dialog, prompt and answers.
      answer: the last one.
      num_tokens: of all answers; None where an endpoint doesn't say.
      score: None where the answer was not judged.
      verdict: "pass", "fail", or why it was not judged.
      refused: the model declined to answer.
      well_formed: None where the suite has no format.
      vote: what maj@k counts.
      turns: answers of the dialog.
      measured: of all answers together; None where nobody looked.
    """

    problem: str
    sample: int
    messages: tuple[tuple[str, str], ...]
    answer: str
    finish_reason: str
    num_tokens: int | None
    score: float | None
    verdict: str
    reasons: tuple[str, ...]
    refused: bool
    well_formed: bool | None
    vote: str
    turns: int = 1
    measured: Measurement | None = None

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"


def short(reasons: Sequence[str]) -> tuple[str, ...]:
    """The first reasons, each bounded."""
    return tuple(reason[:_MAX_REASON_CHARACTERS] for reason in reasons[:_MAX_REASONS])
