"""One number per problem for each metric that a gate may check, from the files of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from serving_bridge.confidence import Calibration
from serving_bridge.safety import Checker, Stage, Verdict
from tools.evaluation import problem_number
from tools.gating.calibration import believed

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
    "seconds": "lower",
    "seconds_per_token": "lower",
    "calibration": "lower",
    "brier": "lower",
    "tokens": "same",
}
#: Metrics whose numbers are in [0, 1].
SHARES = frozenset({"pass", "distinct_2", "judge", "truncated", "format_errors", "refused", "blocked", "brier"})
#: Metrics of how long answers take.
LATENCIES = frozenset({"seconds", "seconds_per_token"})
#: The metric that is no mean over problems.
CALIBRATION = "calibration"
METRICS_TEXT = (
    "pass@K, mean_score, tokens, truncated, refused, format_errors, distinct_2, blocked, judge, seconds, "
    "seconds_per_token, calibration or brier"
)

Values = dict[str, float]


def known_metric(name: str) -> bool:
    stem, at, k = name.partition("@")
    return stem in BETTER and bool(at) == (stem == "pass") and (not at or (k.isascii() and k.isdigit() and k != "0"))


def values_of(
    metric: str,
    suite: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    checker: Checker,
    calibration: Calibration | None = None,
) -> Values:
    """Problem -> its number; problems that have none are left out.

    Args:
      suite: of results.json.
      samples: of scored.jsonl, those of this suite, with what was measured of each under "measured".
      calibration: what makes probabilities of scores; None: they are taken as they are.
    """
    if metric in LATENCIES:
        return _latencies(samples, per_token=metric == "seconds_per_token")
    if metric == "brier":
        errors: dict[str, list[float]] = {}
        for one in believed(samples, calibration):
            errors.setdefault(one.problem, []).append((one.confidence - one.is_right) ** 2)
        return {name: math.fsum(found) / len(found) for name, found in errors.items()}
    if (number := problem_number(metric)) is not None:
        found = {problem["id"]: number(problem) for problem in suite["problems"]}
        return {name: value for name, value in found.items() if value is not None}
    of_texts = {"distinct_2": distinct_2, "blocked": lambda texts: _blocked(texts, checker)}[metric]
    texts: dict[str, list[str]] = {}
    for sample in samples:
        texts.setdefault(sample["problem"], []).append(sample["answer"])
    return {name: value for name, given in texts.items() if (value := of_texts(given)) is not None}


def _latencies(samples: Sequence[Mapping[str, Any]], *, per_token: bool) -> Values:
    """Problem -> mean seconds of an answer, or seconds over tokens of all its answers."""
    seconds: dict[str, list[float]] = {}
    tokens: dict[str, list[float]] = {}
    for sample in samples:
        if (told := sample["measured"]) is not None and (told["num_tokens"] or not per_token):
            seconds.setdefault(sample["problem"], []).append(told["seconds"])
            tokens.setdefault(sample["problem"], []).append(told["num_tokens"] if per_token else 1)
    return {name: math.fsum(found) / math.fsum(tokens[name]) for name, found in seconds.items()}


def distinct_2(texts: Sequence[str]) -> float | None:
    """Different pairs of words in a row over all pairs (Li et al., arXiv 1510.03055); None where there is no pair."""
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    return len(set(pairs)) / len(pairs) if pairs else None


def _blocked(texts: Sequence[str], checker: Checker) -> float:
    """Share of answers that the guards would not let through."""
    return sum(checker.check(text, Stage.ANSWER).verdict is Verdict.BLOCK for text in texts) / len(texts)
