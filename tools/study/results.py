"""The staleness study's records, and the page, table and plot made of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from learner_jax.runtime import SHARED_MODE, WeirError, write_whole
from tools.study.grid import ALGORITHMS, MULTI_TURN, SINGLE_TURN, Cell, StudySettings

Records = dict[Cell, dict[str, Any]]
_BEGIN, _END = "<!-- tables: begin -->", "<!-- tables: end -->"


class StudyError(WeirError, ValueError):
    """The study's records are not all there."""


def keep(out: Path, record: dict[str, Any]) -> None:
    """Writes one cell's record, whole or not at all."""
    name = "-".join(str(record[part]) for part in ("task", "algorithm", "staleness", "seed")).replace(" ", "_")
    path = out / "cells" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record), mode=SHARED_MODE)


def finished(out: Path, settings: StudySettings) -> Records:
    """Records of the cells that were run with these settings."""
    records = {}
    for path in sorted((out / "cells").glob("*.json")):
        record = json.loads(path.read_text())
        if record["settings"] == asdict(settings):
            records[Cell(*(record[part] for part in ("task", "algorithm", "staleness", "seed")))] = record
    return records


def write_report(out: Path, wanted: Sequence[Cell], settings: StudySettings, folder: Path) -> Path:
    """Writes staleness.svg, and the tables into staleness.md between their two markers; the text around them stays.

    Raises:
      StudyError: cells are missing, or the page has lost its markers.
    """
    records = finished(out, settings)
    missing = [cell for cell in wanted if cell not in records]
    if missing:
        raise StudyError(
            f"{len(missing)} of {len(wanted)} cells are not finished, the first is {missing[0]}: run again"
        )
    page = folder / "staleness.md"
    text = page.read_text() if page.exists() else f"# Staleness\n\n{_BEGIN}\n{_END}\n"
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise StudyError(f"{page} has no lines {_BEGIN!r} and {_END!r} between which the tables go; put them back")
    chosen = {cell: records[cell] for cell in wanted}
    folder.mkdir(parents=True, exist_ok=True)
    _plot(chosen, folder / "staleness.svg")
    page.write_text(f"{before}{_BEGIN}\n\n{_tables(chosen, settings)}\n{_END}{after}")
    return page


def _by_row(records: Records, field: str) -> dict[tuple[str, str], dict[int, list[float]]]:
    rows: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, record in records.items():
        rows[cell.task, cell.algorithm][cell.staleness].append(record[field])
    return rows


def _tables(records: Records, settings: StudySettings) -> str:
    seeds = len({cell.seed for cell in records})
    starts = sorted({(cell.task, cell.seed, record["start_accuracy"]) for cell, record in records.items()})
    parts = [
        f"Greedy held-out accuracy in percent after {settings.steps} steps of {settings.groups} x "
        f"{settings.group_size} answers: mean over {seeds} seeds, with the lowest and the highest in parentheses."
    ]
    for task in (SINGLE_TURN, MULTI_TURN):
        rows = {name: columns for (t, name), columns in _by_row(records, "accuracy").items() if t == task}
        if not rows:
            continue
        lags = sorted(next(iter(rows.values())))
        begun = ", ".join(f"{100 * accuracy:.0f}" for t, _, accuracy in starts if t == task)
        parts.append(f"**{task.capitalize()}** (before reinforcement learning: {begun})")
        header = ["staleness", *map(str, lags)]
        body = [[name, *(_spread(columns[lag]) for lag in lags)] for name, columns in rows.items()]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)))
        parts.append("Change against staleness 0 of the same algorithm and seed, in points:")
        body = [
            [name, *(_spread(_differences(columns, lag), sign="+") for lag in lags[1:])]
            for name, columns in rows.items()
        ]
        header = ["staleness", *map(str, lags[1:])]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)))
    return "\n\n".join(parts) + "\n"


def _differences(columns: dict[int, list[float]], lag: int) -> list[float]:
    return [stale - fresh for stale, fresh in zip(columns[lag], columns[min(columns)], strict=True)]


def _spread(values: Sequence[float], *, sign: str = "") -> str:
    low, mean, high = (100 * f(values) for f in (min, np.mean, max))
    return f"{mean:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def _plot(records: Records, path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(9, 4.2), layout="constrained")
    tasks = [task for task in (SINGLE_TURN, MULTI_TURN) if any(cell.task == task for cell in records)]
    lags = sorted({cell.staleness for cell in records})
    rows = _by_row(records, "accuracy")
    for axes, task in zip(np.atleast_1d(figure.subplots(1, len(tasks), sharey=True)), tasks, strict=True):
        for index, name in enumerate(ALGORITHMS):
            if (task, name) not in rows:
                continue
            measured = sorted(rows[task, name].items())
            means = np.array([100 * np.mean(values) for _, values in measured])
            reach = [
                [mean - 100 * min(values) for mean, (_, values) in zip(means, measured, strict=True)],
                [100 * max(values) - mean for mean, (_, values) in zip(means, measured, strict=True)],
            ]
            # Side by side, so that the spreads can be told apart.
            x = [lags.index(lag) + 0.06 * (index - len(ALGORITHMS) / 2) for lag, _ in measured]
            axes.errorbar(x, means, reach, marker="o", markersize=4, capsize=2, color=f"C{index}", label=name)
        axes.set_xticks(range(len(lags)), [str(lag) for lag in lags])
        axes.set_title(task)
        axes.set_xlabel("staleness, versions")
        axes.grid(alpha=0.3, axis="y")
    figure.axes[0].set_ylabel("held-out accuracy, % (lowest to highest seed)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path)
