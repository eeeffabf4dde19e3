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
      value: mean of its raters' voices.
      parts: means and numbers by kind, for people and metrics.
      newest_s: when the last verdict that it counts came.
    """

    value: float
    parts: dict[str, float]
    newest_s: float


def score_of(said: Sequence[Stored]) -> Score | None:
    """The score of an answer; None where nobody gave an explicit number.

    Each rater has one voice: the mean of its latest word of each kind. All who give no name have one voice together,
    since anybody could be any number of them.
    """
    latest: dict[tuple[str, str, int], Stored] = {}
    for number, one in enumerate(said):
        if one.kind in _SCORED and one.value is not None:
            latest[one.rater, one.kind, 0 if one.rater else number] = one
    if not latest:
        return None
    voices: dict[str, list[float]] = {}
    for (rater, _, _), one in latest.items():
        voices.setdefault(rater, []).append(one.value or 0.0)
    parts: dict[str, float] = {}
    for kind in _SCORED:
        own = [one.value for one in latest.values() if one.kind == kind and one.value is not None]
        if own:
            parts[kind] = sum(own) / len(own)
    for one in said:
        if one.source == "implicit":
            parts[one.kind] = parts.get(one.kind, 0.0) + (1.0 if one.value is None else one.value)
    means = [sum(own) / len(own) for own in voices.values()]
    return Score(sum(means) / len(means), parts, max(one.received_s for one in latest.values()))
