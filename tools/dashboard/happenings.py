"""What happened in a run, for people: phases, restarts, troubles and checkpoints, a line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from serving_bridge.telemetry import Record
from tools.dashboard.texts import line

BAD, WARN, GOOD, PLAIN = "bad", "warn", "good", "plain"

#: Event -> (weight, words). Others are told only where they carry an error.
_TOLD: Mapping[str, tuple[str, Callable[[Record], str]]] = {
    "phase": (PLAIN, lambda r: f"phase: {r['name']}"),
    "evaluation": (GOOD, lambda r: f"held-out accuracy {r['which']}: {_percent(r.get('accuracy'))}"),
    "resumed": (PLAIN, lambda r: f"resumed at step {r.get('step')}"),
    "carried_on": (PLAIN, lambda r: f"went on at step {r.get('step')} with {len(r.get('changes') or {})} changes"),
    "ended": (PLAIN, lambda r: f"learner ended at step {r.get('step')}: {r.get('reason')}"),
    "hold": (WARN, lambda r: f"training is held at step {r.get('step')}: {r.get('reason')}" if r.get("held")
             else f"the hold at step {r.get('step')} is over after {_number(r.get('seconds'))} s"),
    "anew": (WARN, lambda r: f"began anew at step {r.get('step')} after rollout {r.get('number')}"),
    "stopping": (WARN, lambda r: f"asked to stop at step {r.get('step')}"),
    "restart": (BAD, lambda r: f"{r.get('name')} ended with status {r.get('status')}; restarted"),
    "replica_started": (PLAIN, lambda r: f"{r.get('replica')} serves after {_number(r.get('seconds'))} s"),
    "replica_lost": (BAD, lambda r: f"{r.get('replica')} was lost: {r.get('reason')}"),
    "replica_restart": (WARN, lambda r: f"{r.get('replica')} restarts: {r.get('reason')}"),
    "replica_failed": (BAD, lambda r: f"{r.get('replica')}: {r.get('error')}"),
    "host_failed": (BAD, lambda r: f"host {r.get('host')}: {r.get('error')}"),
    "version_damaged": (BAD, lambda r: f"version {r.get('version')} is damaged: {r.get('error')}"),
    "anchor_failed": (BAD, lambda r: f"version {r.get('version')} could not be stored whole: {r.get('reason')}"),
    "uncommitted": (WARN, lambda r: f"checkpoint {r.get('step')} not on disk after {_number(r.get('waited_s'))} s"),
    "brought": (WARN, lambda r: f"checkpoint {r.get('step')} was brought from object storage"),
    "ousted": (WARN, lambda r: f"checkpoints of a replaced learner were put aside: {r.get('steps')}"),
    "unjudged_group": (WARN, lambda r: f"a group was given up: {r.get('judged')} of {r.get('answers')} answers judged"),
}  # fmt: skip


def told(record: Record, t: float) -> dict[str, Any] | None:
    """The event as a line of the page; None for those that are none.

    Args:
      t: seconds of the run at which it was written.
    """
    kind = record["event"]
    known = _TOLD.get(kind)
    if known is None and not record.get("error"):
        return None
    weight, text = (BAD, f"{kind}: {record['error']}") if known is None else (known[0], known[1](record))
    wall = record.get("t")
    return {"t": round(t, 1), "wall": wall, "who": line(record.get("process"), 60), "kind": weight, "text": line(text)}


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}%" if isinstance(value, int | float) else "unknown"


def _number(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "?"
