"""One number per problem for each metric that a gate may check, from the files of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from serving_bridge.safety import Checker, Stage, Verdict
from tools.evaluation import problem_number

#: Metric -> which way is better.
BETTER: Mapping[str, str] = {
    "pass": "higher",
    "mean_score": "higher",
    "distinct_2": "higher",
    "judge": "higher",
    "truncated": "lower",
    "format_errors": "lower",
    "refused": "lower",
    "blocked": "lower",
    "tokens": "same",
}
#: Metrics whose numbers are in [0, 1].
SHARES = frozenset({"pass", "distinct_2", "judge", "truncated", "format_errors", "refused", "blocked"})
METRICS_TEXT = "pass@K, mean_score, tokens, truncated, refused, format_errors, distinct_2, blocked or judge"

Values = dict[str, float]


def known_metric(name: str) -> bool:
    stem, at, k = name.partition("@")
    return stem in BETTER and bool(at) == (stem == "pass") and (not at or (k.isascii() and k.isdigit() and k != "0"))


def values_of(metric: str, suite: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], checker: Checker) -> Values:
    """Problem -> its number; problems that have none are left out.

    Args:
      suite: of results.json.
      samples: of scored.jsonl, those of this suite.
    """
    if (number := problem_number(metric)) is not None:
        found = {problem["id"]: number(problem) for problem in suite["problems"]}
        return {name: value for name, value in found.items() if value is not None}
    of_texts = {"distinct_2": distinct_2, "blocked": lambda texts: _blocked(texts, checker)}[metric]
    texts: dict[str, list[str]] = {}
    for sample in samples:
        texts.setdefault(sample["problem"], []).append(sample["answer"])
    return {name: value for name, given in texts.items() if (value := of_texts(given)) is not None}


def distinct_2(texts: Sequence[str]) -> float | None:
    """Different pairs of words in a row over all pairs (Li et al., arXiv 1510.03055); None where there is no pair."""
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    return len(set(pairs)) / len(pairs) if pairs else None


def _blocked(texts: Sequence[str], checker: Checker) -> float:
    """Share of answers that the guards would not let through."""
    return sum(checker.check(text, Stage.ANSWER).verdict is Verdict.BLOCK for text in texts) / len(texts)
