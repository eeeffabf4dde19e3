"""Skill before and after training, over the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.contracts import PASS_SCORE
from serving_bridge.telemetry import Record

_FIGURES = ("accuracy", "mean_score")


def compared(before: Record | None, after: Record | None) -> dict[str, Any]:
    """The figures of two `evaluation` events, both over the problems that were judged both times.

    Returns:
      accuracy_before, accuracy_after, mean_score_before, mean_score_after: None where not measured, or where no problem
        was judged both times.
      num_problems: that they are over; None where neither was measured.
      evaluation_notes: what a reader of the figures must know, a sentence each.
    """
    events = {"before": before, "after": after}
    notes = [
        f"{which} training: {note}" for which, event in events.items() for note in ((event or {}).get("notes") or ())
    ]
    judged = [_judged(event) for event in (before, after)]
    if None in judged or judged[0] == judged[1]:
        found = {f"{name}_{which}": (event or {}).get(name) for name in _FIGURES for which, event in events.items()}
        number = next((event["num_problems"] for event in (after, before) if event), None)
        return found | {"num_problems": number, "evaluation_notes": notes}
    first, second = (set(one or ()) for one in judged)
    common = sorted(first & second)
    notes.append(
        f"{len(first)} problems were judged before training and {len(second)} after it; the figures are over the "
        f"{len(common)} judged both times"
    )
    found = {}
    for which, event in events.items():
        scores = [float((event or {})["scores"][index]) for index in common]
        found[f"accuracy_{which}"] = _mean([float(score >= PASS_SCORE) for score in scores])
        found[f"mean_score_{which}"] = _mean(scores)
    return found | {"num_problems": len(common), "evaluation_notes": notes}


def _judged(event: Record | None) -> list[int] | None:
    """Indices of the problems with a score; None where they are not known."""
    scores = None if event is None else event.get("scores")
    return None if scores is None else [index for index, score in enumerate(scores) if score is not None]


def _mean(numbers: Sequence[float]) -> float | None:
    return math.fsum(numbers) / len(numbers) if numbers else None
