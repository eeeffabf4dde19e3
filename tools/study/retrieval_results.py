"""The page and plot of the study of retrieval: what each way of paying for abstention teaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from tools.study.records import finished, keep, put_tables, require_all
from tools.study.retrieval import PAYS, RetrievalCell, RetrievalSettings, record

_SHARES = ("searched", "right", "cited", "abstained", "abstained wrongly")
#: right where there is an answer, and abstaining where there is none, of a seed that has learnt both
LEARNT = 0.9


def run_study(
    out: Path, seeds: int, settings: RetrievalSettings, progress: Callable[[str], None] = lambda _: None
) -> dict[RetrievalCell, dict[str, Any]]:
    """Runs what has no record in `out` yet."""
    wanted = [RetrievalCell(pays, seed) for pays in PAYS for seed in range(seeds)]
    done = finished(out, settings, RetrievalCell)
    for cell in wanted:
        if cell not in done:
            progress(f"{cell.pays}, seed {cell.seed}")
            keep(out, cell, record(cell, settings, out))
    return require_all(wanted, finished(out, settings, RetrievalCell))


def write_retrieval_report(
    records: dict[RetrievalCell, dict[str, Any]], settings: RetrievalSettings, folder: Path
) -> Path:
    """Writes retrieval.svg, and the table into retrieval.md between its two markers; the text around it stays.

    Raises:
      StudyError: the page has lost its markers.
    """
    page = put_tables(folder / "retrieval.md", "Retrieval", retrieval_table(records, settings))
    _plot(records, folder / "retrieval.svg")
    return page


def retrieval_table(records: dict[RetrievalCell, dict[str, Any]], settings: RetrievalSettings) -> str:
    """One row a way of paying: shares at the end, in percent, and how many seeds learnt to answer and to abstain."""
    seeds = len({cell.seed for cell in records})
    dialogs = settings.steps * settings.groups * settings.group_size
    names = ("searched", "right answers", "cited", "abstained rightly", "abstained wrongly", "reward", "learnt both")
    rows = [f"| abstaining | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for pays, curves in _by_pays(records).items():
        last = [curve[-1] for curve in curves]
        cells = [_spread([100 * end[name] for end in last]) for name in _SHARES]
        cells.append(f"{np.mean([end['reward'] for end in last]):.2f}")
        cells.append(f"{sum(min(end['right'], end['abstained']) >= LEARNT for end in last)} of {len(last)}")
        rows.append(f"| {pays} | {' | '.join(cells)} |")
    begin = (
        f"Held-out questions after {dialogs:,} dialogs, {seeds} seeds: mean in percent, with the lowest and the "
        f"highest in parentheses."
    )
    return f"{begin}\n\n" + "\n".join(rows) + "\n"


def _by_pays(records: dict[RetrievalCell, dict[str, Any]]) -> dict[str, list[list[dict[str, float]]]]:
    pays = dict.fromkeys(cell.pays for cell in records)
    return {each: [record["curve"] for cell, record in records.items() if cell.pays == each] for each in pays}


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def _plot(records: dict[RetrievalCell, dict[str, Any]], path: Path) -> None:
    curves = _by_pays(records)
    figure = matplotlib.figure.Figure(figsize=(9, 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(curves), sharey=True))
    for axes, (pays, runs) in zip(panels, curves.items(), strict=True):
        dialogs = [at["dialogs"] for at in runs[0]]
        for index, name in enumerate(_SHARES):
            values = 100 * np.array([[at[name] for at in run] for run in runs])
            axes.plot(dialogs, values.mean(axis=0), color=f"C{index}", label=name)
            axes.fill_between(dialogs, values.min(axis=0), values.max(axis=0), color=f"C{index}", alpha=0.15, lw=0)
        axes.set_title(pays, fontsize=9)
        axes.set_xlabel("dialogs")
        axes.grid(alpha=0.3, axis="y")
    figure.axes[0].set_ylabel("held-out share, %\n(mean, lowest to highest seed)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path)
