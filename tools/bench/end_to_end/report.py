"""What the benchmark of whole runs concludes: tables of each side, ratios to the others, and skill by step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from tools.bench.end_to_end.figures import Figures
from tools.bench.end_to_end.sides import BASE, WEIR
from tools.bench.timing import Spread, ratio, spread

LABELS = {WEIR: "Weir", BASE: "Weir, base", "trl": "TRL", "tunix": "Tunix"}
_MIB = 2**20
#: parts of a run over which rewards are averaged
_PARTS = 6

#: side -> its runs, one a round
Results = Mapping[str, Sequence[Figures]]


def sides_table(results: Results) -> Table:
    """One column a side: what a step takes, and what a run takes beside."""
    figures: dict[str, Callable[[Figures], float]] = {
        "wall s a step, mean": lambda run: run.step_wall,
        "CPU s a step": lambda run: run.cpu,
        "tokens/s": lambda run: run.tokens_per_s,
        "peak memory, MiB (PSS)": lambda run: run.memory_bytes / _MIB,
        "launch to the first step, s": lambda run: run.first_step,
        "load average": lambda run: run.load,
        "cores that others kept busy": lambda run: run.others,
    }
    title = "medians over rounds (10th to 90th percentile)"
    found = Table("", *(LABELS[side] for side in results), title=title)
    pooled = [_shown(spread([wall for run in runs for wall in run.step_walls])) for runs in results.values()]
    found.add_row("wall s of single steps", *pooled)
    for name, value in figures.items():
        found.add_row(name, *(_shown(spread([value(run) for run in runs])) for runs in results.values()))
    return found


def processes_table(results: Results) -> Table:
    """CPU seconds a step and memory at the peak, by what each process is for."""
    found = Table("side", "process", "CPU s a step", "MiB at the peak", title="by process, children included")
    for side, runs in results.items():
        roles = {role for run in runs for role in (*run.step_cpu, *run.memory)}
        for role in sorted(roles, key=lambda role: -statistics.median(run.step_cpu.get(role, 0) for run in runs)):
            cpu = spread([run.step_cpu.get(role, 0.0) for run in runs])
            memory = spread([run.memory.get(role, 0) / _MIB for run in runs])
            found.add_row(LABELS[side], role, _shown(cpu), _shown(memory))
    return found


def ratios(results: Results) -> dict[str, dict[str, Spread]]:
    """Weir over each other side, round by round; a time to the target only where both reached it."""
    if WEIR not in results:
        return {}
    weir = results[WEIR]
    figures: dict[str, Callable[[Figures], float]] = {
        "wall a step": lambda run: run.step_wall,
        "CPU a step": lambda run: run.cpu,
        "tokens/s": lambda run: run.tokens_per_s,
        "peak memory": lambda run: run.memory_bytes,
        "launch to 1st step": lambda run: run.first_step,
    }
    found: dict[str, dict[str, Spread]] = {}
    for side, runs in results.items():
        if side == WEIR:
            continue
        found[side] = {name: ratio(list(map(of, weir)), list(map(of, runs))) for name, of in figures.items()}
        times = [(a.target[0], b.target[0]) for a, b in zip(weir, runs, strict=True) if a.target and b.target]
        if times:
            found[side]["launch to the target"] = ratio([a for a, _ in times], [b for _, b in times])
    return found


def ratios_table(found: Mapping[str, Mapping[str, Spread]]) -> Table:
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    table = Table("Weir over", *names, title="ratios within a round, median (10th to 90th percentile)")
    for side, row in found.items():
        table.add_row(LABELS[side], *(_shown(row[name]) if name in row else "-" for name in names))
    return table


def skill_table(results: Results, target: float | None) -> Table | None:
    """Held-out accuracy by step, and when the target was reached; None if nobody was evaluated."""
    if not any(run.skills for runs in results.values() for run in runs):
        return None
    steps = sorted({step for runs in results.values() for run in runs for step, *_ in run.skills})
    shown = [step for i, step in enumerate(steps) if i % -(-len(steps) // 12) == 0 or step == steps[-1]]
    found = Table(
        "side", *(f"step {step}" for step in shown), f"to {target:.1%}" if target is not None else "", title="accuracy"
    )
    for side, runs in results.items():
        cells = []
        for step in shown:
            values = [accuracy for run in runs for at, _, accuracy, _ in run.skills if at == step]
            cells.append(f"{statistics.median(values):.1%}" if values else "-")
        times = "; ".join(
            "not reached" if run.target is None else f"{run.target[0]:.0f} s, step {run.target[1]}" for run in runs
        )
        found.add_row(LABELS[side], *cells, times if target is not None else "")
    return found


def rewards_table(results: Results) -> Table:
    """Mean reward of the batches, over parts of the run."""
    last = max(step for runs in results.values() for run in runs for step, _ in run.rewards)
    size = -(-last // _PARTS)
    parts = [(first, min(first + size - 1, last)) for first in range(1, last + 1, size)]
    found = Table("side", *(f"{first}-{end}" for first, end in parts), title="mean reward by step")
    for side, runs in results.items():
        cells = []
        for first, end in parts:
            values = [
                value for run in runs for step, value in run.rewards if first <= step <= end and value is not None
            ]
            cells.append(f"{statistics.mean(values):.3f}" if values else "-")
        found.add_row(LABELS[side], *cells)
    return found


def _shown(values: Spread) -> str:
    """The median, and the percentiles where there is more than one value."""
    shown = values.show()
    return shown if values.p10 < values.p90 else shown.partition(" ")[0]
