"""The curves of a run: which figures of which events are kept, over steps or over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving_bridge.telemetry import Record
from tools.dashboard.rows import Row, Rows, is_number

_STEP = (
    "version", "reward", "kl", "entropy", "clip_fraction", "effective_sample_share", "ratio", "loss", "grad_norm",
    "mismatch_mean_abs_logprob", "mismatch_max_abs_logprob", "mismatch_masked", "staleness_mean", "staleness_max",
    "answer_tokens_mean", "truncated_share", "num_tokens", "zero_variance_groups", "dropped_stale", "dropped_groups",
    "unjudged_groups", "failed_verdicts", "value_loss", "value_explained_variance", "mfu", "real_token_share",
    "wait_s", "prepare_s", "transfer_s", "compute_s", "publish_s", "save_s", "step_s",
)  # fmt: skip
_INTERVAL = ("tokens", "seconds", "idle_s", "running", "waiting_requests", "served_version", "retries")
#: Figures of which the largest is shown where rows stand for several events, not the mean.
_LARGEST = ("mismatch_max_abs_logprob", "staleness_max", "served_version", "version")
#: Figures shown with their smallest and largest beside the mean.
_BANDED = ("reward", "kl", "pause_s")
#: Parts of a reward that are kept.
_MAX_PARTS = 12
PART = "part:"

#: Table -> column -> what it is, from the sums of a row.
_DERIVED: Mapping[str, Mapping[str, Callable[[Row], float | None]]] = {
    "steps": {"idle": lambda row: _share(row, "wait_s", "step_s")},
    "intervals": {
        "idle": lambda row: _share(row, "idle_s", "seconds"),
        "tokens_per_s": lambda row: _times(_share(row, "tokens", "seconds"), len(row.workers)),
    },
    "rounds": {"paused_s": lambda row: row.total("pause_s")},
}


_NUMBERS = frozenset({*_STEP, *_INTERVAL, "accuracy", "mean_score", "pause_s", "stage_s", "running_at_pause"})
#: Events that belong to a step.
_STEPPED = ("step", "heldout", "warm_start")


def checked(record: Record) -> Record:
    """The event with None in place of figures that are no numbers.

    Raises:
      ValueError: its time or its step is none.
    """
    if not is_number(record.get("t")) or (record["event"] in _STEPPED and not is_number(record.get("step"))):
        raise ValueError(f"event {record['event']}: expected numbers as t and step")
    kept = {name: value if name not in _NUMBERS or is_number(value) else None for name, value in record.items()}
    if record["event"] == "waits":
        waits = record.get("waits") or []
        kept["waits"] = [wait for wait in waits if isinstance(wait, dict) and is_number(wait.get("waited_s"))]
    return kept


class Curves:
    """Tables of a run's figures, each of bounded size."""

    def __init__(self, *, capacity: int = 1024) -> None:
        self.tables: dict[str, Rows] = {
            name: Rows(capacity=capacity) for name in ("steps", "heldout", "warm_start", "intervals", "rounds", "queue")
        }

    def take(self, record: Record, t: float, last_step: int) -> None:
        """Takes one event.

        Args:
          t: seconds of the run at which it was written.
          last_step: number of the newest train step.
        """
        tables = self.tables
        match record["event"]:
            case "step":
                steps, step = tables["steps"], record["step"]
                if steps.last is not None and step <= steps.last:
                    steps.drop_from(step)
                parts = dict(list((record.get("reward_parts") or {}).items())[:_MAX_PARTS])
                steps.add(step, t, _chosen(record, _STEP) | {f"{PART}{name}": value for name, value in parts.items()})
            case "heldout":
                tables["heldout"].add(record["step"], t, _chosen(record, ("accuracy", "mean_score")))
            case "evaluation":
                step = 0 if record["which"] == "before" else last_step
                tables["heldout"].add(step, t, _chosen(record, ("accuracy", "mean_score")))
            case "warm_start":
                tables["warm_start"].add(record["step"], t, _chosen(record, ("loss", "accuracy")))
            case "interval":
                tables["intervals"].add(t, t, _chosen(record, _INTERVAL), worker=str(record.get("process")))
            case "round":
                figures = _chosen(record, ("pause_s", "stage_s", "running_at_pause"))
                tables["rounds"].add(t, t, figures, worker=str(record.get("replica")))

    def changes(self, known: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Rows that a reader does not have, in columns, by table.

        Args:
          known: table -> (generation, serial) of what the reader has.
        """
        found = {}
        for name, rows in self.tables.items():
            generation, serial = known.get(name, (-1, -1))
            anew = generation != rows.generation
            if anew or serial < rows.serial:
                found[name] = {
                    "at": [rows.generation, rows.serial],
                    "anew": anew,
                    "width": rows.width,
                    **_columns(name, rows, -1 if anew else serial),
                }
        return found


def _columns(table: str, rows: Rows, serial: int) -> dict[str, Any]:
    derived = _DERIVED.get(table, {})
    names = list(rows.names)
    banded = [name for name in names if name in _BANDED]
    heads = ["x", "t", *names, *derived, *(f"{name}.low" for name in banded), *(f"{name}.high" for name in banded)]
    lines = []
    for row in rows.since(serial):
        figures = [row.figures.get(name) for name in names]
        shown = [
            None if f is None else f.high if name in _LARGEST else f.mean
            for name, f in zip(names, figures, strict=True)
        ]
        bands = [row.figures.get(name) for name in banded]
        shown += [of(row) for of in derived.values()]
        shown += [None if f is None else f.low for f in bands] + [None if f is None else f.high for f in bands]
        lines.append([row.first, round(row.t, 3), *(_rounded(value) for value in shown)])
    return {"columns": heads, "rows": lines}


def _chosen(record: Record, names: Sequence[str]) -> dict[str, Any]:
    return {name: record[name] for name in names if record.get(name) is not None}


def _share(row: Row, part: str, whole: str) -> float | None:
    over, under = row.total(part), row.total(whole)
    return None if over is None or not under or under <= 0 else over / under


def _times(value: float | None, factor: int) -> float | None:
    return None if value is None else value * factor


def _rounded(value: float | None) -> float | None:
    """Six digits: more than a picture shows, in a third of the bytes."""
    return None if value is None else float(f"{value:.6g}")
