"""The picture of a run in a terminal: its panels, bars and sparklines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from configs.schema import Config
from learner_jax.runtime import printable
from serving_bridge.telemetry import Record
from tools.reporting.figures import (
    IdleShares,
    RunHistory,
    balance,
    balance_text,
    idle_shares,
    intervals_during,
    left_out,
    mean,
    replica_states,
    staleness_shares,
    steps_in_order,
    tokens_per_s,
    values,
    waits_now,
    weight_updates,
)
from tools.reporting.online import online_figures
from tools.reporting.shown import (
    WINDOW,
    clock,
    heldout_records,
    heldout_skill,
    number,
    percent,
    phase_now,
    scientific,
)

_SILENT_AFTER_S = 20.0
_MOST_WAITS = 4
_SPARKS = "▁▂▃▄▅▆▇█"

_WHO_WAITS = {
    "rollout-bound": "the learner waits for answers: more replicas or workers would speed this run up",
    "train-bound": "the rollout workers wait for the learner: a faster learner would speed this run up",
    "balanced": "neither side waits much longer than the other",
}


def picture(
    history: RunHistory,
    config: Config,
    directory: Path,
    *,
    now: float,
    width: int,
    replicas: Mapping[str, int] | None = None,
) -> RenderableType:
    """The whole picture, `width` columns wide.

    Args:
      replicas: how many are in each state; as the events tell it if None.
    """
    steps = steps_in_order(history)
    columns = Table.grid(expand=True, padding=(0, 1, 0, 0))
    columns.add_column(ratio=1)
    columns.add_column(ratio=1)
    columns.add_row(
        Panel(_learning(history, config, steps), title="learning", title_align="left", border_style="cyan"),
        Panel(_flow(history, config, steps, replicas), title="flow", title_align="left", border_style="magenta"),
    )
    parts: list[RenderableType] = [
        _header(history, config, now),
        columns,
        Panel(_waiting(history, config, steps), title="who waits for whom", title_align="left", border_style="yellow"),
    ]
    if missing := left_out(history):
        parts.append(Text.assemble((" not learned from ", "bold yellow"), ", ".join(missing), no_wrap=True))
    if history.problems:
        when, what = history.problems[-1]
        said = f"at {clock(when - (history.first_t or when))}  {printable(what)}"
        parts.append(Text.assemble((" last problem ", "bold yellow"), said, no_wrap=True, overflow="ellipsis"))
    parts.append(Text(f" {printable(directory)}", style="dim", overflow="ellipsis", no_wrap=True))
    frame = Table.grid()
    frame.add_column(width=width)
    frame.add_row(Group(*parts))
    return frame


def sparkline(numbers: Sequence[float], width: int) -> str:
    """The last numbers as a row of blocks, each the mean of an equal part when there are more than `width`."""
    if not numbers:
        return ""
    if len(numbers) > width:
        edges = [round(i * len(numbers) / width) for i in range(width + 1)]
        numbers = [sum(numbers[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(numbers), max(numbers)
    span = (high - low) or 1.0
    return "".join(_SPARKS[min(int((n - low) / span * len(_SPARKS)), len(_SPARKS) - 1)] for n in numbers)


def _header(history: RunHistory, config: Config, now: float) -> RenderableType:
    phase = phase_now(history)
    ended = history.is_over
    elapsed = clock(history.wall_s(None if ended else now))
    silent = 0.0 if ended or history.last_t is None else now - history.last_t
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    status = Text.assemble((phase, "bold green" if ended else "bold"), ("  " + elapsed, "dim"))
    if silent > _SILENT_AFTER_S:
        status.append(f"  no event for {clock(silent)}", style="yellow")
    line.add_row(Text.assemble(("weir", "bold cyan"), ("  " + config.run.name, "bold")), status)
    return Panel(Group(line, _progress(history, config)), border_style="dim")


def _progress(history: RunHistory, config: Config) -> RenderableType:
    steps = steps_in_order(history)
    if steps or config.warm_start is None or not history.warm_start:
        done, total, label = (steps[-1]["step"] if steps else 0), config.learner.steps, "step"
        remaining = _remaining_s(steps, total)
        tail = f"{clock(remaining)} left" if remaining else ""
    else:
        last = history.warm_start[-1]
        done, total, label = last["step"], config.warm_start.max_steps, "supervised step"
        tail = f"at most; ends at {config.warm_start.target_accuracy:.0%} accuracy"
    width = 40
    filled = min(round(width * done / total), width)
    return Text.assemble(
        (f"{label} {done}", "bold"), f" of {total}  ", ("━" * filled, "cyan"), ("─" * (width - filled), "dim"),
        ("  " + tail, "dim"), no_wrap=True, overflow="ellipsis",
    )  # fmt: skip


def _remaining_s(steps: Sequence[Record], total: int) -> float | None:
    """Time left at the pace of the last steps."""
    if len(steps) < 3 or steps[-1]["step"] >= total:
        return None
    recent = steps[-WINDOW:]
    pace = (recent[-1]["t"] - recent[0]["t"]) / (recent[-1]["step"] - recent[0]["step"])
    return pace * (total - steps[-1]["step"])


def _learning(history: RunHistory, config: Config, steps: Sequence[Record]) -> RenderableType:
    table = _rows()
    if not steps:
        losses = values(history.warm_start, "loss")
        accuracies = values(history.warm_start, "accuracy")
        table.add_row("supervised loss", number(losses[-1] if losses else None), _spark(losses))
        table.add_row("validation", percent(accuracies[-1] if accuracies else None), _spark(accuracies))
        table.add_row("held-out", heldout_skill(history), "")
        for _ in range(4):
            table.add_row("", "", "")
        return table
    last = steps[-1]
    budget = config.learner.loss.kl.budget
    table.add_row("reward", number(mean(values(steps[-5:], "reward"))), _spark(values(steps, "reward"), "green"))
    heldout = values(heldout_records(history), "mean_score" if history.is_graded else "accuracy")
    table.add_row("held-out", heldout_skill(history), _spark(heldout, "green"))
    kl = number(last.get("kl"), 4) + (f" of {budget:g}" if budget else "")
    table.add_row("KL to start", kl, _spark(values(steps, "kl")))
    table.add_row("entropy", number(last.get("entropy")), _spark(values(steps, "entropy")))
    table.add_row("gradient norm", number(last.get("grad_norm")), _spark(values(steps, "grad_norm")))
    clipped = mean(values(steps[-WINDOW:], "clip_fraction"))
    table.add_row("clipped tokens", percent(clipped, 1), _spark(values(steps, "clip_fraction")))
    shares = values(steps, "effective_sample_share")
    table.add_row("effective sample", percent(mean(shares[-WINDOW:])), _spark(shares))
    return table


def _flow(
    history: RunHistory, config: Config, steps: Sequence[Record], replicas: Mapping[str, int] | None
) -> RenderableType:
    table = _rows(value_width=None)
    recent = steps[-WINDOW:]
    intervals = intervals_during(history, recent) or list(history.intervals)[-WINDOW:]
    updates = weight_updates(history)
    pauses = [1000 * pause for pause in values(updates, "pause_s")]
    stale = number(mean(values(recent, "staleness_mean")), 2)
    worst = max(values(steps, "staleness_max"), default=None)
    table.add_row("staleness", f"{stale} mean, {number(worst, 0)} max (bound {config.rollout.max_staleness})")
    shares = staleness_shares(recent)
    if shares:
        table.add_row("tokens behind", ", ".join(f"{lag}: {percent(share)}" for lag, share in enumerate(shares)))
    if (online := online_figures(recent)) is not None:
        bound = config.learner.online.max_staleness
        shown = f"{percent(online.token_share)}, {online.staleness_max} max behind (bound {bound})"
        table.add_row("users' tokens", shown)
    mean_gap = scientific(steps[-1].get("mismatch_mean_abs_logprob") if steps else None)
    max_gap = scientific(steps[-1].get("mismatch_max_abs_logprob") if steps else None)
    table.add_row("mismatch", f"{mean_gap} mean, {max_gap} max")
    running = intervals[-1].get("running") if intervals else None
    rate = number(tokens_per_s(intervals), 0)
    table.add_row("sampling", f"{rate} tokens/s, {number(running, 0)} groups open")
    pause = f", pause {mean(pauses):.0f} ms mean, {max(pauses):.0f} max" if pauses else ""
    table.add_row("weight updates", f"{len(updates)}{pause}")
    table.add_row("in flight", f"{history.totals['mixed_version_answers']} answers spanned an update")
    if recent and recent[-1].get("mfu") is not None:
        used = f"{percent(mean(values(recent, 'mfu')), 1)} of the matmul peak"
        table.add_row(
            "learner", f"{used}, {percent(mean(values(recent, 'real_token_share')))} of the slots real tokens"
        )
    if states := replica_states(history) if replicas is None else replicas:
        shown = ", ".join(f"{number} {printable(state)}" for state, number in sorted(states.items()))
        table.add_row("replicas", shown)
    dropped = sum(values(steps, "dropped_stale"))
    retries = sum(values(intervals, "retries"))
    table.add_row("lost work", f"{dropped:.0f} stale groups, {retries:.0f} retries")
    return table


def _waiting(history: RunHistory, config: Config, steps: Sequence[Record]) -> RenderableType:
    recent = steps[-WINDOW:]
    shares = idle_shares(recent, intervals_during(history, recent))
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, share in (("learner", shares.learner), ("rollout", shares.rollout)):
        table.add_row(Text(name, style="bold"), _bar(share), f"{percent(share)} idle")
    lines: list[RenderableType] = [table, _verdict(shares)]
    if shares.bottleneck != "balanced" and (better := balance(shares, config, history.engine)) is not None:
        lines.append(Text(balance_text(better), style="dim"))
    if history.held is not None:
        lines.append(Text(f"training is held: {printable(history.held.get('reason'))}", style="bold yellow"))
    for process, wait, waited_s in waits_now(history)[:_MOST_WAITS]:
        left = clock(max(wait["limit_s"] - waited_s, 0))
        lines.append(
            Text.assemble(
                (printable(process), "bold"), f" waits for {printable(wait['what'])} from ",
                (printable(wait["on"]), "bold"),
                (f"  {clock(waited_s)}, gives up in {left}", "dim"), no_wrap=True, overflow="ellipsis",
            )
        )  # fmt: skip
    return Group(*lines)


def _verdict(shares: IdleShares) -> Text:
    if shares.bottleneck is None:
        return Text("not known before the first steps", style="dim")
    return Text.assemble((shares.bottleneck, "bold yellow"), "  ", (_WHO_WAITS[shares.bottleneck], ""))


def _bar(idle: float | None, width: int = 60) -> Text:
    if idle is None:
        return Text("─" * width, style="dim")
    busy = min(max(round(width * (1 - idle)), 0), width)
    return Text.assemble(("█" * busy, "green"), ("░" * (width - busy), "red"))


def _rows(value_width: int | None = 13) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=14)
    table.add_column(no_wrap=True, min_width=value_width, overflow="ellipsis")
    return table


def _spark(numbers: Sequence[float], style: str = "cyan") -> Text:
    return Text(sparkline(numbers, 16), style=style, no_wrap=True)
