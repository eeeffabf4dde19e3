"""`fuzzy`: the answer resembles the reference, after both lost their case, punctuation and articles.

The similarity is 1 - (insertions + deletions + substitutions) / (length of the longer text), Levenshtein's. A number
is never nearly right: answers that hold other numbers than the reference fail, however similar.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from rapidfuzz.distance import Levenshtein

from rewards.contracts import RewardResult, scored
from rewards.verifiers.columns import number, texts
from rewards.verifiers.verifier import Plain, Row, RowError

DEFAULT_THRESHOLD = 0.9
_MAX_CHARACTERS = 20_000
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_WORD = re.compile(r"[^\w\s]|_")
_NUMBER = re.compile(r"(?<![\w)])-?(?:\d+(?:[.,]\d+)*|\.\d+)")


def create(*, deadline_s: float, num_workers: int) -> Plain:
    return Plain(judge)


def judge(answer: str, row: Row) -> RewardResult:
    """Whether the similarity to `row["answer"]`, or to one of a list, is at least `row["threshold"]` (default 0.9).

    The part "similarity" is the best one. An answer too long to reach the threshold isn't compared.

    Raises:
      RowError: a column is missing, wrong or too long.
    """
    threshold = number(row, "threshold", DEFAULT_THRESHOLD)
    if not 0 < threshold <= 1:
        raise RowError(f"row.threshold is {threshold:g}, expected more than 0 and at most 1")
    references = texts(row)
    if any(len(reference) > _MAX_CHARACTERS for reference in references):
        raise RowError(f"row.answer has more than {_MAX_CHARACTERS} characters")
    # Normalising shortens a text at most by its punctuation: what is far longer than that is not looked at.
    given = answer[: 50 * _MAX_CHARACTERS]
    best, why = max(_compared(given, reference, threshold) for reference in references)
    return scored(float(best >= threshold), {"similarity": best}, reasons=(why,))


def _compared(answer: str, reference: str, threshold: float) -> tuple[float, str]:
    """The similarity, 0 if it isn't computed, and what is to be said of it."""
    given, wanted = normalised(answer), normalised(reference)
    if len(given) * threshold > len(wanted) + 1:
        return 0.0, f"it is far longer than {reference!r:.100}"
    if _numbers(answer) != _numbers(reference):
        return 0.0, f"its numbers are not those of {reference!r:.100}"
    similarity = Levenshtein.normalized_similarity(given, wanted)
    return similarity, f"similarity {similarity:.3f} to {reference!r:.100}, expected at least {threshold:g}"


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, words separated by single spaces; in Unicode's form NFKC.

    A text that holds nothing else, such as "?", keeps it.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = _ARTICLES.sub(" ", _NO_WORD.sub(" ", folded)).split()
    return " ".join(words or folded.split())


def _numbers(text: str) -> Counter[str]:
    return Counter(match.replace(",", "").rstrip(".") for match in _NUMBER.findall(text))
