"""The page, tables and plot of the study of learning per step, with the intervals of differences."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from tools.study.learning_grid import SYNCHRONOUS, LearningCell, LearningSettings
from tools.study.records import StudyError, finished, put_tables, require_all

#: held-out accuracy by step
Curve = dict[int, float]
#: of each way to learn, the curve of each seed
Curves = dict[str, dict[int, Curve]]

WHOLE_RUNS: Mapping[str, str] = {"weir": "Weir's job", "trl": "TRL's trainer"}
_WEIR, _TRL = WHOLE_RUNS.values()
#: two-sided 95% quantiles of Student's t, by degrees of freedom from 1
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def write_learning_report(
    out: Path, wanted: Sequence[LearningCell], settings: LearningSettings, whole_runs: Curves, folder: Path
) -> Path:
    """Writes learning_per_step.svg, and the tables into learning_per_step.md.

    Args:
      whole_runs: as of `read_whole_runs`.
    Raises:
      StudyError: cells are missing, or the page has lost its markers.
    """
    if not wanted:
        raise StudyError(f"no cell in {out} is finished with these settings: run without --only-report")
    records = require_all(list(wanted), finished(out, settings, LearningCell))
    curves: Curves = {name: dict(by_seed) for name, by_seed in whole_runs.items()}
    for cell, record in records.items():
        curves.setdefault(cell.variant, {})[cell.seed] = dict(record["accuracy"])
    page = put_tables(folder / "learning_per_step.md", "Learning per step", _tables(curves, records, settings))
    _plot(curves, folder / "learning_per_step.svg")
    return page


def read_whole_runs(paths: Sequence[Path], settings: LearningSettings) -> Curves:
    """The sides of benchmarks of whole runs, from what `tools.bench end_to_end --json` wrote: one seed a record.

    Raises:
      StudyError: a record is another benchmark's, or holds other evaluations than the study's.
    """
    curves: Curves = {}
    for path in paths:
        for name, seed, curve in _read_whole_run(path, settings):
            curves.setdefault(name, {})[seed] = curve
    return curves


def _read_whole_run(path: Path, settings: LearningSettings) -> list[tuple[str, int, Curve]]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StudyError(f"{str(path)!r} cannot be read as JSON: {type(error).__name__}") from None
    if not isinstance(record, dict) or record.get("benchmark") != "end_to_end" or record["settings"]["name"] != "demo":
        raise StudyError(f"{path} is no record of `tools.bench end_to_end --workload demo`, expected one")
    seeds = re.findall(r"\brun\.seed=(\d+)", " ".join(record["settings"]["overrides"]))
    found = []
    for side, runs in record["results"]["runs"].items():
        if len(runs) != 1:
            raise StudyError(f"{path} has {len(runs)} rounds, expected 1: a seed has one curve")
        curve = {int(step): float(accuracy) for step, _, accuracy, _ in runs[0]["skills"]}
        if missing := [step for step in _evaluations(settings) if step not in curve]:
            raise StudyError(f"{path} has no evaluation of {side} at steps {missing}: run it with --evaluate-every")
        found.append((WHOLE_RUNS.get(side, side), int(seeds[-1]) if seeds else 0, curve))
    return found


def difference(more: Mapping[int, float], less: Mapping[int, float]) -> tuple[float, float, int] | None:
    """(mean, half the width of the 95% interval, number of pairs) of differences by seed; None below two pairs.

    The interval is Student's: differences between seeds are taken as normal.
    """
    pairs = [more[seed] - less[seed] for seed in sorted(more.keys() & less.keys())]
    if not 2 <= len(pairs) <= len(T95) + 1:
        return None
    half = T95[len(pairs) - 2] * float(np.std(pairs, ddof=1)) / math.sqrt(len(pairs))
    return float(np.mean(pairs)), half, len(pairs)


def _evaluations(settings: LearningSettings) -> list[int]:
    return list(range(settings.evaluate_every, settings.steps + 1, settings.evaluate_every))


def _means(curves: Mapping[int, Curve], steps: Sequence[int]) -> dict[int, float]:
    """Of each seed, accuracy averaged over evaluations."""
    return {seed: float(np.mean([curve[step] for step in steps])) for seed, curve in curves.items()}


def _tables(curves: Curves, records: dict[LearningCell, dict[str, Any]], settings: LearningSettings) -> str:
    steps = _evaluations(settings)
    parts = ["Greedy held-out accuracy in percent, mean over seeds:"]
    body = [
        [
            name,
            str(len(by_seed)),
            *(f"{100 * np.mean([curve[step] for curve in by_seed.values()]):.1f}" for step in steps),
            _spread(list(_means(by_seed, steps).values())),
        ]
        for name, by_seed in curves.items()
    ]
    parts.append(_table(["", "seeds", *(f"step {step}" for step in steps), "mean (lowest to highest seed)"], body))
    parts.append("Differences by seed in points, with 95% intervals (Student's t):")
    body = []
    for more, less in _compared(curves):
        cells = []
        for over in (steps, steps[-3:]):
            found = difference(_means(curves[more], over), _means(curves[less], over))
            cells.append("-" if found is None else f"{100 * found[0]:+.1f} ± {100 * found[1]:.1f}")
        body.append([f"{more} - {less}", str(len(curves[more].keys() & curves[less].keys())), *cells])
    parts.append(_table(["", "pairs", "mean over the curve", f"steps {steps[-3:][0]} to {steps[-1]}"], body))
    parts.append("What the loss saw, means over all steps and seeds:")
    parts.append(_table(["", "clipped tokens", "KL, nats a token", "entropy, nats", "gradient norm"], _seen(records)))
    return "\n\n".join(parts) + "\n"


def _compared(curves: Curves) -> list[tuple[str, str]]:
    pairs = [(_WEIR, _TRL), (_WEIR, SYNCHRONOUS), (SYNCHRONOUS, _TRL), (_WEIR, "two versions old")]
    pairs += [(name, SYNCHRONOUS) for name in curves if name not in (SYNCHRONOUS, _WEIR, _TRL)]
    return [(more, less) for more, less in pairs if more in curves and less in curves]


def _seen(records: Mapping[LearningCell, dict[str, Any]]) -> list[list[str]]:
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in records):
        steps = [record["by_step"] for cell, record in records.items() if cell.variant == variant]
        clipped, kl, entropy, norm = (
            np.mean([by_step[name] for by_step in steps]) for name in ("clip_fraction", "kl", "entropy", "grad_norm")
        )
        rows.append([variant, f"{clipped:.2%}", f"{kl:.3f}", f"{entropy:.3f}", f"{norm:.2f}"])
    return rows


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body))


def _spread(values: Sequence[float]) -> str:
    low, mean, high = (100 * f(values) for f in (min, np.mean, max))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _plot(curves: Curves, path: Path) -> None:
    """Means over seeds, with the lowest and the highest seed as a band for the first curves."""
    figure = matplotlib.figure.Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for index, (name, by_seed) in enumerate(curves.items()):
        steps = sorted(set.intersection(*(set(curve) for curve in by_seed.values())))
        values = 100 * np.array([[curve[step] for step in steps] for curve in by_seed.values()])
        whole = name in (_WEIR, _TRL)
        axes.plot(steps, values.mean(axis=0), color=f"C{index}", label=name, lw=2.2 if whole else 1.3)
        if whole:
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=f"C{index}", alpha=0.12, lw=0)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("held-out accuracy, % (bands: lowest to highest seed)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
