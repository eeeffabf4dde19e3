"""The study of the canary: how often good candidates are rolled back, and bad ones promoted, by the real controller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from tools.shares import wilson
from tools.study.records import finished, keep, put_tables, require_all
from tools.testing.canary import BAD, GOOD, Kind, roll_out

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*GOOD, *BAD)}
_SEEDS_A_CELL = 25


@dataclass(frozen=True)
class CanarySettings:
    """What every cell is run with.

    Attributes:
      max_hours: of virtual time, after which a rollout counts as not ended.
      planned_hours: until which a good candidate is to be at 100%.
      deaths: chance that the controller is killed in a look.
    """

    max_hours: float = 72.0
    planned_hours: float = 12.0
    deaths: float = 0.01


@dataclass(frozen=True)
class CanaryCell:
    """So many seeds of a kind of candidate, from the first on."""

    kind: str
    first: int
    seeds: int


def canary_cells(good: int, bad: int) -> list[CanaryCell]:
    """Cells of `good` candidates, dealt out among their kinds, and of `bad` ones of each kind."""
    found = []
    for number, kind in enumerate(GOOD):
        share = good // len(GOOD) + (number < good % len(GOOD))
        found += list(_parts(kind.name, share))
    for kind in BAD:
        found += list(_parts(kind.name, bad))
    return found


def _parts(kind: str, seeds: int) -> Iterator[CanaryCell]:
    for first in range(0, seeds, _SEEDS_A_CELL):
        yield CanaryCell(kind, first, min(_SEEDS_A_CELL, seeds - first))


def run_cell(out: Path, settings: CanarySettings, cell: CanaryCell) -> CanaryCell:
    """Runs a cell and keeps its record."""
    outcomes = [
        asdict(roll_out(KINDS[cell.kind], seed, max_hours=settings.max_hours, deaths=settings.deaths))
        for seed in range(cell.first, cell.first + cell.seeds)
    ]
    keep(out, cell, {"settings": asdict(settings), "outcomes": outcomes})
    return cell


def write_canary_report(out: Path, wanted: list[CanaryCell], settings: CanarySettings, folder: Path) -> Path:
    """Writes canary.svg, and the tables into canary.md between its two markers; the text around them stays."""
    records = require_all(wanted, finished(out, settings, CanaryCell))
    outcomes: dict[str, list[dict[str, Any]]] = {}
    for cell, record in records.items():
        outcomes.setdefault(cell.kind, []).extend(record["outcomes"])
    page = put_tables(folder / "canary.md", "Does the canary decide rightly?", _tables(outcomes, settings))
    _plot(outcomes, settings, folder / "canary.svg")
    return page


def _tables(outcomes: dict[str, list[dict[str, Any]]], settings: CanarySettings) -> str:
    good = [one for kind in GOOD for one in outcomes.get(kind.name, [])]
    bad = [one for kind in BAD for one in outcomes.get(kind.name, [])]
    every = [*good, *bad]
    planned = f"at 100% within {settings.planned_hours:g} h"
    rows = ["| good candidates | how many | rolled back | inconclusive | promoted | " + planned + " | hours, median |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, told, chosen in (*((k.name, k.told, outcomes.get(k.name, [])) for k in GOOD), ("all", "", good)):
        if chosen:
            hours = float(np.median([one["hours"] for one in chosen]))
            intime = [one["phase"] == "promoted" and one["hours"] <= settings.planned_hours for one in chosen]
            counts = [_share(chosen, phase) for phase in ("rolled_back", "inconclusive", "promoted")]
            cells = [f"{name}: {told}" if told else name, str(len(chosen)), *counts, _rate(sum(intime), len(chosen))]
            rows.append(f"| {' | '.join(cells)} | {hours:.1f} |")
    rows += ["", "| bad candidates | how many | rolled back | inconclusive | promoted | hours, median | at, median |"]
    rows.append("|---|---|---|---|---|---|---|")
    for kind in BAD:
        if chosen := outcomes.get(kind.name, []):
            hours = float(np.median([one["hours"] for one in chosen]))
            steps = sorted(one["step"] for one in chosen)
            typical = max(set(steps), key=steps.count)
            counts = [_share(chosen, phase) for phase in ("rolled_back", "inconclusive", "promoted")]
            rows.append(
                f"| {kind.name}: {kind.told} | {len(chosen)} | {' | '.join(counts)} | {hours:.1f} | {typical} |"
            )
    if bad:
        counts = [_share(bad, phase) for phase in ("rolled_back", "inconclusive", "promoted")]
        rows.append(f"| all | {len(bad)} | {' | '.join(counts)} | | |")
    late = [one["late_s"] for one in bad if one["late_s"] is not None]
    looks, deaths = sum(one["looks"] for one in every), sum(one["deaths"] for one in every)
    violations = [violation for one in every for violation in one["violations"]]
    rows += [
        "",
        f"In {looks:,} looks {deaths:,} controllers were killed. Alias, split and rollout disagreed, or a decision did "
        f"not replay, {len(violations)} times.",
        f"Of {len(late):,} bad candidates that a metric showed, the longest time from that look to weight 0 was "
        f"{max(late, default=0.0):.0f} s of virtual time; the interval is 600 s.",
    ]
    return "\n".join(rows)


def _share(outcomes: Sequence[dict[str, Any]], phase: str) -> str:
    return _rate(sum(one["phase"] == phase for one in outcomes), len(outcomes))


def _rate(number: int, of: int) -> str:
    low, high = wilson(number, of)
    return f"{number / of:.1%} ({low:.1%} to {high:.1%})"


def _plot(outcomes: dict[str, list[dict[str, Any]]], settings: CanarySettings, path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind in GOOD:
        chosen = outcomes.get(kind.name, [])
        hours = sorted(one["hours"] for one in chosen if one["phase"] == "promoted")
        if hours:
            left.step(hours, np.arange(1, len(hours) + 1) / len(chosen), where="post", label=kind.name)
    left.axvline(settings.planned_hours, color="grey", linestyle="--", linewidth=1)
    left.set(
        xlabel="hours since the start", ylabel="share at 100%", title="good candidates", ylim=(0, 1.02), xlim=(0, None)
    )
    if left.get_legend_handles_labels()[0]:
        left.legend()
    names = [kind.name for kind in BAD if outcomes.get(kind.name)]
    for row, name in enumerate(reversed(names)):
        hours = [one["hours"] for one in outcomes[name] if one["phase"] == "rolled_back"]
        jitter = np.random.default_rng(row).uniform(-0.25, 0.25, len(hours))
        right.plot(hours, row + jitter, ".", markersize=3, alpha=0.5, color="tab:red")
    right.set_yticks(range(len(names)), list(reversed(names)))
    right.set(xlabel="hours until it was rolled back", title="bad candidates", xlim=(0, None))
    figure.savefig(path)
