"""Scores of one answer: from the log-probs of its tokens, and from how far other samples say the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

ScoreName = Literal["mean", "min", "length", "agreement"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)

#: exponent of the length penalty (Wu et al. 2016, arXiv 1609.08144, equation 14, whose alpha is 0.6 to 0.7)
_ALPHA = 0.6
_WORD = re.compile(r"\w+")


@dataclass
class Sums:
    """What the scores need of the log-probs of an answer's sampled tokens, in nats; one token after the other.

    Attributes:
      total, least: sum, and the lowest one; 0 before the first token.
    """

    count: int = 0
    total: float = 0.0
    least: float = 0.0

    def add(self, logprob: float) -> None:
        self.count += 1
        self.total += logprob
        self.least = min(self.least, logprob)


def score_of(name: ScoreName, sums: Sums, agreed: float | None = None) -> float | None:
    """One score of an answer; higher is surer.

    "mean" is the mean log-prob of a token, "min" the lowest one, "length" the sum over the length penalty of Wu et al.
    (2016). "agreement" is `agreed` itself, within 0 to 1.

    Returns:
      None where it is not known: an answer without tokens, or without other samples.
    """
    if name == "agreement":
        return agreed
    if not sums.count:
        return None
    match name:
        case "mean":
            return sums.total / sums.count
        case "min":
            return sums.least
        case "length":
            return float(sums.total / ((5 + sums.count) / 6) ** _ALPHA)


def agreement(answer: str, others: Sequence[str]) -> float | None:
    """How far other samples say the same: their mean F1 of words with the answer, within 0 to 1.

    This is self-consistency (Wang et al. 2022, arXiv 2203.11171) for answers that are no single label. The F1 is that
    of SQuAD (Rajpurkar et al. 2016), over lower-case words with their counts.

    Returns:
      None without other samples.
    """
    if not others:
        return None
    own = Counter(_WORD.findall(answer.lower()))
    return sum(_f1(own, Counter(_WORD.findall(other.lower()))) for other in others) / len(others)


def _f1(left: Counter[str], right: Counter[str]) -> float:
    size = left.total() + right.total()
    return 2 * (left & right).total() / size if size else 1.0
