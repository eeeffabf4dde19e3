"""What feedback says of an answer in numbers: explicit verdicts as one score, implicit signals beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving_bridge.feedback.store import Stored

#: explicit kinds that are a number about one answer
_SCORED = ("rating", "thumbs", "outcome")


@dataclass(frozen=True)
class Score:
    """An answer's score.

    Attributes:
      value: mean of its explicit verdicts.
      parts: means and numbers by kind, for people and metrics.
      newest_s: when the last verdict that it counts came.
    """

    value: float
    parts: dict[str, float]
    newest_s: float


def score_of(said: Sequence[Stored]) -> Score | None:
    """The score of an answer; None where nobody gave an explicit number. One rater counts once, by the latest word."""
    latest: dict[tuple[str, str], Stored] = {}
    for number, one in enumerate(said):
        if one.kind in _SCORED and one.value is not None:
            latest[one.kind, one.rater or f"#{number}"] = one
    if not latest:
        return None
    values = [one.value for one in latest.values() if one.value is not None]
    parts: dict[str, float] = {}
    for kind in _SCORED:
        own = [one.value for one in latest.values() if one.kind == kind and one.value is not None]
        if own:
            parts[kind] = sum(own) / len(own)
    for one in said:
        if one.source == "implicit":
            parts[one.kind] = parts.get(one.kind, 0.0) + (1.0 if one.value is None else one.value)
    return Score(sum(values) / len(values), parts, max(one.received_s for one in latest.values()))
