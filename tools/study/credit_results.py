"""The page of the study of credit by turn: how many dialogs each way of credit needs, beside the outcome alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tools.study.records import StudyError, put_tables
from tools.study.turn_credit import CREDITS, LEARNT, CreditSettings, run

_OUTCOME = "outcome alone"
#: by the name of a way of credit, dialogs that each seed needed; None for a seed that did not learn
Needed = Mapping[str, Sequence[int | None]]


def run_study(
    out: Path, seeds: int, settings: CreditSettings, progress: Callable[[str], None] = lambda _: None
) -> dict[str, list[int | None]]:
    """Runs what has no record in `out` yet; each way of credit is one record."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[int | None]] = {}
    for number, name in enumerate(CREDITS):
        about = {"credit": name, "seeds": seeds, **asdict(settings)}
        file = out / f"credit-{number}.json"
        record = json.loads(file.read_text()) if file.is_file() else {}
        if {key: record.get(key) for key in about} != about:
            progress(name)
            record = {**about, "needed": run(name, range(seeds), settings)}
            file.write_text(json.dumps(record))
        found[name] = record["needed"]
    return found


def write_credit_report(found: Needed, settings: CreditSettings, folder: Path) -> Path:
    """Writes the table into turn_credit.md between its two markers; the text around it stays.

    Raises:
      StudyError: the page has lost its markers.
    """
    return put_tables(folder / "turn_credit.md", "Credit by turn", credit_table(found, settings))


def credit_table(found: Needed, settings: CreditSettings) -> str:
    """One row a way of credit: the median of what it needed, the extremes, and its share of what the outcome needs."""
    limit = settings.steps * settings.groups * settings.group_size
    base = float(np.median([limit if n is None else n for n in found[_OUTCOME]]))
    if not base:
        raise StudyError("no seed was run")
    rows = ["| credit | dialogs, median | fewest | most | share of outcome alone |", "|---|---|---|---|---|"]
    for name, needed in found.items():
        counted = sorted(limit if n is None else n for n in needed)
        median = float(np.median(counted))
        never = sum(n is None for n in needed)
        most = f"{counted[-1]:,}" if not never else f"{never} of {len(needed)} did not learn"
        rows.append(f"| {name} | {median:,.0f} | {counted[0]:,} | {most} | {median / base:.2f} |")
    seeds = len(next(iter(found.values())))
    begin = (
        f"Dialogs until the first action is right in {100 * LEARNT:.0f}% of ten batches, {seeds} seeds; batches of "
        f"{settings.groups} x {settings.group_size} dialogs, at most {limit:,}."
    )
    return f"{begin}\n\n" + "\n".join(rows)
