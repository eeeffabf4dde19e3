"""What each source of a task gave: reward, share solved and length of answers in training, and held-out skill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.reporting.figures import RunHistory

_COUNTED = ("groups", "answers", "passes", "reward", "episodes", "tokens")
#: Sources of one run that are shown; labels come from its metrics.
_MOST = 256


def by_source(history: RunHistory) -> dict[str, dict[str, float | int | None]]:
    """Figures by label; empty where the task has one source.

    Each has groups, answers (judged), reward_mean, solved (share of the judged), tokens_mean (sampled, of an answer or
    a whole dialog), and heldout_before and heldout_after (accuracy); None where it was not measured.
    """
    totals: dict[str, dict[str, float]] = {}
    for interval in history.intervals:
        for label, found in _tables(interval.get("sources")).items():
            if label in totals or len(totals) < _MOST:
                own = totals.setdefault(label, dict.fromkeys(_COUNTED, 0.0))
                for name in _COUNTED:
                    own[name] += _number(found.get(name)) or 0.0
    held = {which: _tables((history.evaluations.get(which) or {}).get("sources")) for which in ("before", "after")}
    return {label: _figures(label, own, held) for label, own in sorted(totals.items())}


def _figures(
    label: str, own: Mapping[str, float], held: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | int | None]:
    answers, episodes = own["answers"], own["episodes"]
    return {
        "groups": int(own["groups"]),
        "answers": int(answers),
        "reward_mean": own["reward"] / answers if answers else None,
        "solved": own["passes"] / answers if answers else None,
        "tokens_mean": own["tokens"] / episodes if episodes else None,
        **{f"heldout_{which}": _number(tables.get(label, {}).get("accuracy")) for which, tables in held.items()},
    }


def _tables(found: Any) -> dict[str, Mapping[str, Any]]:
    """The tables by name of what should be such; others are left out."""
    if not isinstance(found, Mapping):
        return {}
    return {str(label): table for label, table in found.items() if isinstance(table, Mapping)}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
