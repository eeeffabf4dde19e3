"""What is wrong with the history of a finished run: groups lost, or trained on twice."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from configs.load import load_config
from serving_bridge.queue import TrajectoryQueue
from serving_bridge.telemetry.metrics_log import read_metrics
from tools.assembly import run_paths
from tools.testing.chaos.checker import check
from tools.testing.chaos.history import History, entries, given_up, read_ledger

#: The learner then records the groups of each step.
RECORDED = {"WEIR_RECORD_HISTORY": "1"}


def problems(run: Path) -> list[str]:
    """One line for each thing that is wrong; the run's processes had `RECORDED` in their environment."""
    config = load_config(run / "config.toml")
    records: list[dict[str, Any]] = read_metrics(run / "metrics.jsonl")
    with closing(TrajectoryQueue(run_paths(config).database)) as queue:
        ledger = read_ledger(queue)
    history = History(
        run=config.run.name,
        total_steps=config.learner.steps,
        max_staleness=config.rollout.max_staleness,
        groups_per_step=config.learner.groups_per_step,
        entries=entries(map(_whole, records)),
        ledger=ledger,
        given_up=given_up(records),
        published=[record["version"] for record in records if record["event"] == "published"],
    )
    return check(history)


def _whole(record: dict[str, Any]) -> dict[str, Any]:
    """A step of several hosts, whose first one knows the oldest tokens of its own groups alone."""
    if record["event"] != "consumed":
        return record
    unknown = len(record["groups"]) - len(record["oldest"])
    return record | {"oldest": [*record["oldest"], *[record["version"]] * unknown]}
