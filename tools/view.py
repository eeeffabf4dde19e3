"""The live view of a run: what `metrics.jsonl` says, as a picture in a terminal or as plain lines elsewhere.

    python -m tools.view runs/demo

attaches to a run that is going on (on this machine or through a shared file system) or shows one that has ended.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from configs.load import load_config
from configs.schema import Config
from learner_jax.runtime import printable
from serving_bridge.routing import ReplicaRegistry
from serving_bridge.telemetry import MetricsTail, Record
from tools.assembly import wiring
from tools.command_line import command_parser
from tools.reporting import terminal
from tools.reporting.figures import (
    GRADED_FROM,
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

#: Steps over which rates and shares are averaged.
_WINDOW = 20

#: Rollout intervals kept in memory; at one a second and worker, enough for the window unless steps take minutes.
_KEPT_INTERVALS = 10_000

_PLAIN_EVERY_S = 5.0
_ATTACH_TICK_S = 0.5
_SILENT_AFTER_S = 20.0
_MAX_WIDTH = 100
_MOST_WAITS = 4
_SPARKS = "▁▂▃▄▅▆▇█"

_WHO_WAITS = {
    "rollout-bound": "the learner waits for answers: more replicas or workers would speed this run up",
    "train-bound": "the rollout workers wait for the learner: a faster learner would speed this run up",
    "balanced": "neither side waits much longer than the other",
}


class LiveView:
    """Shows a run while it goes on. Redraws in place on a terminal; elsewhere writes a line every few seconds.

    Use as a context manager; `update` takes the events that came since the last call.
    """

    def __init__(
        self,
        config: Config,
        directory: str | Path,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._directory = Path(directory)
        self._console = console or terminal.console()
        self._clock = clock
        self._registry = ReplicaRegistry(
            Path(config.store.weights or self._directory / "weights") / "replicas", clock=clock
        )
        self._history = RunHistory(intervals=deque(maxlen=_KEPT_INTERVALS))
        self._live: Live | None = None
        self._last_line_t = 0.0
        self._last_line = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Drawn by `update` rather than by a thread of rich's, which would read the history while it changes.
            self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._picture)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._write_line()

    def update(self, records: Iterable[Record]) -> None:
        records = list(records)
        self._history.add(records)
        if self._live is not None:
            self._live.refresh()
            return
        for record in records:
            if record["event"] in ("phase", "evaluation"):
                self._console.print(_plain_event(record), highlight=False, soft_wrap=True)
        if records and self._clock() - self._last_line_t >= _PLAIN_EVERY_S:
            self._write_line()

    def _write_line(self) -> None:
        self._last_line_t = self._clock()
        line = plain_line(self._history, self._config)
        if line != self._last_line:
            self._console.print(line, highlight=False, soft_wrap=True)
        self._last_line = line

    def _picture(self) -> RenderableType:
        width = min(self._console.width, _MAX_WIDTH)
        return picture(
            self._history, self._config, self._directory, now=self._clock(), width=width, replicas=self._replicas()
        )

    def _replicas(self) -> dict[str, int] | None:
        """States by the fleet's own rows, which tell when they were written: a killed fleet writes no event."""
        rows = self._registry.replicas()
        return dict(Counter(self._registry.state(row) for row in rows)) if rows else None

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be expected of the run."""
        return self._history.is_over


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


def plain_line(history: RunHistory, config: Config) -> str:
    """The state of a run in one line."""
    steps = steps_in_order(history)
    head = f"{clock(history.wall_s())}  {_phase(history)}"
    if not steps:
        if not history.warm_start:
            return head
        last = history.warm_start[-1]
        return f"{head}  step {last['step']}  loss {_number(last['loss'])}  accuracy {_percent(_accuracy_now(history))}"
    recent, last = steps[-_WINDOW:], steps[-1]
    intervals = intervals_during(history, recent)
    shares = idle_shares(recent, intervals)
    worst = max(values(steps, "staleness_max"), default=None)
    parts = [
        head,
        f"step {last['step']}/{config.learner.steps}",
        f"reward {_number(mean(values(recent[-5:], 'reward')))}",
        f"held-out {_heldout(history)}",
        f"KL {_number(last.get('kl'))}",
        f"staleness {_number(mean(values(recent, 'staleness_mean')), 2)} (max {_number(worst, 0)})",
        f"mismatch {_scientific(last.get('mismatch_mean_abs_logprob'))}",
        f"{_number(tokens_per_s(intervals), 0)} tokens/s",
        f"{shares.bottleneck or 'starting'} (idle: learner {_percent(shares.learner)},"
        f" rollout {_percent(shares.rollout)})",
        *left_out(history),
    ]
    return "  ".join(parts)


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


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _header(history: RunHistory, config: Config, now: float) -> RenderableType:
    phase = _phase(history)
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
    recent = steps[-_WINDOW:]
    pace = (recent[-1]["t"] - recent[0]["t"]) / (recent[-1]["step"] - recent[0]["step"])
    return pace * (total - steps[-1]["step"])


def _learning(history: RunHistory, config: Config, steps: Sequence[Record]) -> RenderableType:
    table = _rows()
    if not steps:
        losses = values(history.warm_start, "loss")
        accuracies = values(history.warm_start, "accuracy")
        table.add_row("supervised loss", _number(losses[-1] if losses else None), _spark(losses))
        table.add_row("validation", _percent(accuracies[-1] if accuracies else None), _spark(accuracies))
        table.add_row("held-out", _heldout(history), "")
        for _ in range(4):
            table.add_row("", "", "")
        return table
    last = steps[-1]
    budget = config.learner.loss.kl.budget
    table.add_row("reward", _number(mean(values(steps[-5:], "reward"))), _spark(values(steps, "reward"), "green"))
    heldout = values(_heldout_records(history), "mean_score" if history.is_graded else "accuracy")
    table.add_row("held-out", _heldout(history), _spark(heldout, "green"))
    kl = _number(last.get("kl"), 4) + (f" of {budget:g}" if budget else "")
    table.add_row("KL to start", kl, _spark(values(steps, "kl")))
    table.add_row("entropy", _number(last.get("entropy")), _spark(values(steps, "entropy")))
    table.add_row("gradient norm", _number(last.get("grad_norm")), _spark(values(steps, "grad_norm")))
    clipped = mean(values(steps[-_WINDOW:], "clip_fraction"))
    table.add_row("clipped tokens", _percent(clipped, 1), _spark(values(steps, "clip_fraction")))
    shares = values(steps, "effective_sample_share")
    table.add_row("effective sample", _percent(mean(shares[-_WINDOW:])), _spark(shares))
    return table


def _flow(
    history: RunHistory, config: Config, steps: Sequence[Record], replicas: Mapping[str, int] | None
) -> RenderableType:
    table = _rows(value_width=None)
    recent = steps[-_WINDOW:]
    intervals = intervals_during(history, recent) or list(history.intervals)[-_WINDOW:]
    updates = weight_updates(history)
    pauses = [1000 * pause for pause in values(updates, "pause_s")]
    stale = _number(mean(values(recent, "staleness_mean")), 2)
    worst = max(values(steps, "staleness_max"), default=None)
    table.add_row("staleness", f"{stale} mean, {_number(worst, 0)} max (bound {config.rollout.max_staleness})")
    shares = staleness_shares(recent)
    if shares:
        table.add_row("tokens behind", ", ".join(f"{lag}: {_percent(share)}" for lag, share in enumerate(shares)))
    mean_gap = _scientific(steps[-1].get("mismatch_mean_abs_logprob") if steps else None)
    max_gap = _scientific(steps[-1].get("mismatch_max_abs_logprob") if steps else None)
    table.add_row("mismatch", f"{mean_gap} mean, {max_gap} max")
    running = intervals[-1].get("running") if intervals else None
    rate = _number(tokens_per_s(intervals), 0)
    table.add_row("sampling", f"{rate} tokens/s, {_number(running, 0)} groups open")
    pause = f", pause {mean(pauses):.0f} ms mean, {max(pauses):.0f} max" if pauses else ""
    table.add_row("weight updates", f"{len(updates)}{pause}")
    table.add_row("in flight", f"{history.totals['mixed_version_answers']} answers spanned an update")
    if recent and recent[-1].get("mfu") is not None:
        used = f"{_percent(mean(values(recent, 'mfu')), 1)} of the matmul peak"
        table.add_row(
            "learner", f"{used}, {_percent(mean(values(recent, 'real_token_share')))} of the slots real tokens"
        )
    if states := replica_states(history) if replicas is None else replicas:
        shown = ", ".join(f"{number} {printable(state)}" for state, number in sorted(states.items()))
        table.add_row("replicas", shown)
    dropped = sum(values(steps, "dropped_stale"))
    retries = sum(values(intervals, "retries"))
    table.add_row("lost work", f"{dropped:.0f} stale groups, {retries:.0f} retries")
    return table


def _waiting(history: RunHistory, config: Config, steps: Sequence[Record]) -> RenderableType:
    recent = steps[-_WINDOW:]
    shares = idle_shares(recent, intervals_during(history, recent))
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, share in (("learner", shares.learner), ("rollout", shares.rollout)):
        table.add_row(Text(name, style="bold"), _bar(share), f"{_percent(share)} idle")
    lines: list[RenderableType] = [table, _verdict(shares)]
    if shares.bottleneck != "balanced" and (better := balance(shares, config, history.engine)) is not None:
        lines.append(Text(balance_text(better), style="dim"))
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


def _phase(history: RunHistory) -> str:
    return printable(history.phase)


def _heldout_records(history: RunHistory) -> list[Record]:
    """Held-out measurements in order: before, while training, after."""
    before, after = history.evaluations.get("before"), history.evaluations.get("after")
    return [*([before] if before else []), *history.heldout, *([after] if after else [])]


def _heldout(history: RunHistory) -> str:
    """Held-out skill before, and now if measured since."""
    records = _heldout_records(history)
    if not records:
        return "-"
    shown = [_skill(record, graded=history.is_graded) for record in (records[0], records[-1])]
    return shown[0] if len(records) == 1 else " → ".join(shown)


def _skill(record: Record, *, graded: bool) -> str:
    """The mean score where answers are graded, else the share that is right."""
    return _number(record.get("mean_score")) if graded else _percent(record.get("accuracy"))


def _accuracy_now(history: RunHistory) -> float | None:
    accuracies = values(history.warm_start, "accuracy")
    return accuracies[-1] if accuracies else None


def _plain_event(record: Record) -> str:
    if record["event"] == "phase":
        return f"== {printable(record['name'])}"
    accuracy, score = record["accuracy"], record.get("mean_score")
    text = f"== held-out accuracy {record['which']}: {_percent(accuracy, 1)} of {record['num_problems']}"
    is_graded = None not in (accuracy, score) and abs(score - accuracy) > GRADED_FROM
    text = f"{text}, mean score {_number(score)}" if is_graded else text
    return "; ".join([text, *(printable(note) for note in record.get("notes") or ())])


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}%"


def attach(directory: Path, *, tick_s: float = _ATTACH_TICK_S) -> None:
    """Follows a run directory until the run has ended; Ctrl-C leaves the run alone."""
    config = load_config(directory / "config.toml")
    tail = MetricsTail(directory / "metrics.jsonl")
    with LiveView(config, directory) as view:
        while True:
            records = tail.read()
            view.update(records)
            if view.is_over:
                return
            time.sleep(tick_s)


def main() -> None:
    parser = command_parser("view", __doc__)
    parser.add_argument("run_directory", type=Path)
    with wiring.clear_errors(), contextlib.suppress(KeyboardInterrupt):
        attach(parser.parse_args().run_directory)


if __name__ == "__main__":
    main()
