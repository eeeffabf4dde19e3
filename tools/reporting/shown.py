"""Figures of a run as words, which the live view and its plain lines share."""

from __future__ import annotations

from learner_jax.runtime import printable
from serving_bridge.telemetry import Record
from tools.reporting.figures import RunHistory, values

#: Steps over which rates and shares are averaged.
WINDOW = 20


def phase_now(history: RunHistory) -> str:
    return printable(history.phase)


def heldout_records(history: RunHistory) -> list[Record]:
    """Held-out measurements in order: before, while training, after."""
    before, after = history.evaluations.get("before"), history.evaluations.get("after")
    return [*([before] if before else []), *history.heldout, *([after] if after else [])]


def heldout_skill(history: RunHistory) -> str:
    """Held-out skill before, and now if measured since."""
    records = heldout_records(history)
    if not records:
        return "-"
    shown = [_skill(record, graded=history.is_graded) for record in (records[0], records[-1])]
    return shown[0] if len(records) == 1 else " → ".join(shown)


def _skill(record: Record, *, graded: bool) -> str:
    """The mean score where answers are graded, else the share that is right."""
    return number(record.get("mean_score")) if graded else percent(record.get("accuracy"))


def accuracy_now(history: RunHistory) -> float | None:
    accuracies = values(history.warm_start, "accuracy")
    return accuracies[-1] if accuracies else None


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
