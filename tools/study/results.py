"""The page, tables and plot that are made of the staleness study's records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from tools.study.grid import ALGORITHMS, MULTI_TURN, SINGLE_TURN, Cell, StudySettings
from tools.study.records import finished, put_tables, require_all

Records = dict[Cell, dict[str, Any]]


def write_report(out: Path, wanted: Sequence[Cell], settings: StudySettings, folder: Path) -> Path:
    """Writes staleness.svg, and the tables into staleness.md between their two markers; the text around them stays.

    Raises:
      StudyError: cells are missing, or the page has lost its markers.
    """
    chosen = require_all(list(wanted), finished(out, settings, Cell))
    page = put_tables(folder / "staleness.md", "Staleness", _tables(chosen, settings))
    _plot(chosen, folder / "staleness.svg")
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
