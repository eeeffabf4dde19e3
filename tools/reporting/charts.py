"""The curves of a run as inline SVG pictures, each with a text that says what it shows."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from configs.schema import Config
from serving_bridge.telemetry import Record
from tools.reporting.figures import RunHistory, intervals_during, mean, series, steps_in_order, values

BLUE, GREEN, ORANGE, RED, PURPLE, GREY = "#2563eb", "#059669", "#d97706", "#dc2626", "#7c3aed", "#94a3b8"
_SMOOTH = 10

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "weir",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": "#475569",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "xtick.color": "#64748b",
    "ytick.color": "#64748b",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Chart:
    """A picture for the report.

    Attributes:
      caption: one sentence on how to read it.
      alt: the picture in words, with its first and last values.
    """

    title: str
    caption: str
    alt: str
    svg: str


def charts(history: RunHistory, config: Config) -> list[Chart]:
    """Every chart for which the run has measured something."""
    steps = steps_in_order(history)
    made = [_warm_start(history)]
    if steps:
        made += [
            _reward(steps),
            _heldout(history, steps[-1]["step"]),
            _kl(steps, config.learner.loss.kl.budget),
            _one_line(steps, "entropy", "Entropy", "nats per token", "Mean entropy of the policy over sampled tokens."),
            _staleness(steps, config.rollout.max_staleness),
            _staleness_of_tokens(steps),
            _online(steps, config),
            _off_policy(steps),
            _values(steps),
            _mismatch(steps),
            _idle(history, steps),
            _step_time(steps),
        ]
    return [chart for chart in made if chart is not None]


def drawn(draw: Callable[[Axes], None], *, xlabel: str, ylabel: str, height: float = 2.7) -> str:
    """Runs a drawing function on a fresh figure and returns SVG markup that can stand inside HTML.

    Args:
      height: in inches; the width is 5.2.
    """
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type] # the stub wants each key as a literal
        figure = Figure(figsize=(5.2, height), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        draw(axes)
        labels = axes.get_legend_handles_labels()[1]
        if labels:
            figure.legend(loc="outside upper left", ncols=len(labels), borderpad=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    markup = buffer.getvalue()
    return markup[markup.index("<svg") :]


def _smooth(numbers: Sequence[float]) -> list[float]:
    """Trailing mean over `_SMOOTH` points."""
    return [mean(numbers[max(0, i + 1 - _SMOOTH) : i + 1]) or 0.0 for i in range(len(numbers))]


def _from_to(numbers: Sequence[float]) -> str:
    return f"from {numbers[0]:.4g} to {numbers[-1]:.4g}, lowest {min(numbers):.4g}, highest {max(numbers):.4g}"


def _warm_start(history: RunHistory) -> Chart | None:
    x, losses = series(history.warm_start, "loss")
    if not x:
        return None
    accuracy_x, accuracies = series(history.warm_start, "accuracy")

    def draw(axes: Axes) -> None:
        axes.plot(x, losses, color=GREY, label="loss")
        axes.set_ylim(bottom=0)
        right = axes.twinx()
        right.spines["right"].set_visible(False)
        right.grid(False)
        right.plot(accuracy_x, accuracies, color=GREEN, marker="o", markersize=3)
        right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.set_ylim(0, 1)
        axes.plot([], [], color=GREEN, marker="o", markersize=3, label="validation accuracy (right)")

    return Chart(
        "Supervised start",
        "Loss on the task's own answers and greedy accuracy on validation problems, until the target skill.",
        f"Supervised loss {_from_to(losses)}" + (f"; accuracy {_from_to(accuracies)}." if accuracies else "."),
        drawn(draw, xlabel="supervised step", ylabel="nats per token"),
    )


def _off_policy(steps: Sequence[Record]) -> Chart | None:
    x, shares = series(steps, "effective_sample_share")
    clipped_x, clipped = series(steps, "clip_fraction")  # an objective of the user's own may have none
    if not x:
        return None

    def draw(axes: Axes) -> None:
        axes.plot(x, shares, color=PURPLE, label="effective sample size / tokens")
        if clipped:
            axes.plot(clipped_x, clipped, color=GREY, label="clipped tokens")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, 1.02)

    return Chart(
        "Off-policy",
        "How far the batch is from the current policy: 100% effective sample size is on-policy data.",
        f"Effective sample share {_from_to(shares)}" + (f"; clipped share {_from_to(clipped)}." if clipped else "."),
        drawn(draw, xlabel="optimizer step", ylabel="share of tokens"),
    )


def _values(steps: Sequence[Record]) -> Chart | None:
    return _one_line(
        steps,
        "value_explained_variance",
        "Value function",
        "explained variance",
        "Share of the value targets' variance that the value function explains; 1 is perfect, below 0 harmful.",
    )


def _reward(steps: Sequence[Record]) -> Chart | None:
    x, rewards = series(steps, "reward")
    if not x:
        return None

    def draw(axes: Axes) -> None:
        axes.plot(x, rewards, color=BLUE, alpha=0.3, linewidth=1, label="batch")
        axes.plot(x, _smooth(rewards), color=BLUE, label=f"mean of {_SMOOTH} steps")

    return Chart(
        "Reward",
        "Mean reward of the sampled answers in each batch (sampled at the training temperature).",
        f"Reward {_from_to(rewards)}.",
        drawn(draw, xlabel="optimizer step", ylabel="reward"),
    )


def _heldout(history: RunHistory, last_step: int) -> Chart | None:
    key = "mean_score" if history.is_graded else "accuracy"
    before, after = history.evaluations.get("before", {}), history.evaluations.get("after", {})
    measured = [(0, before.get(key)), *((r["step"], r.get(key)) for r in history.heldout), (last_step, after.get(key))]
    points = [(step, skill) for step, skill in measured if skill is not None]
    if not points:
        return None

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*points, strict=True), color=GREEN, marker="o", markersize=4)
        if not history.is_graded:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, 1)
        for step, skill in {points[0], points[-1]}:
            axes.annotate(
                f"{skill:.3f}" if history.is_graded else f"{skill:.1%}", (step, skill), xytext=(0, -14),
                textcoords="offset points",
                ha="right" if step else "left", color=GREEN, fontweight="bold",
            )  # fmt: skip

    name, label = ("Held-out mean score", "score") if history.is_graded else ("Held-out accuracy", "passed")
    return Chart(
        name,
        "Greedy answers to problems that are never trained on, measured through vLLM.",
        f"{name} {_from_to([skill for _, skill in points])}.",
        drawn(draw, xlabel="optimizer step", ylabel=label),
    )


def _kl(steps: Sequence[Record], budget: float | None) -> Chart | None:
    x, kl = series(steps, "kl")
    if not x:
        return None

    def draw(axes: Axes) -> None:
        axes.plot(x, kl, color=PURPLE, alpha=0.3, linewidth=1, label="batch")
        axes.plot(x, _smooth(kl), color=PURPLE, label=f"mean of {_SMOOTH} steps")
        if budget is not None:
            axes.axhline(budget, color=RED, linestyle="--", linewidth=1, label="budget")
        axes.set_ylim(bottom=min(0, *kl))

    return Chart(
        "KL to the start",
        "How far the policy has moved from the frozen reference (k3 estimate).",
        f"KL {_from_to(kl)}." + (f" Budget {budget:g}." if budget is not None else ""),
        drawn(draw, xlabel="optimizer step", ylabel="nats per token"),
    )


def _one_line(steps: Sequence[Record], key: str, title: str, ylabel: str, caption: str) -> Chart | None:
    x, y = series(steps, key)
    if not x:
        return None

    def draw(axes: Axes) -> None:
        axes.plot(x, y, color=ORANGE)

    return Chart(title, caption, f"{title} {_from_to(y)}.", drawn(draw, xlabel="optimizer step", ylabel=ylabel))


def _staleness(steps: Sequence[Record], bound: int) -> Chart | None:
    x, average = series(steps, "staleness_mean")
    worst_x, worst = series(steps, "staleness_max")
    if not x:
        return None

    def draw(axes: Axes) -> None:
        axes.fill_between(worst_x, worst, color=ORANGE, alpha=0.18, step="mid", linewidth=0, label="oldest token")
        axes.plot(x, average, color=ORANGE, label="mean")
        axes.axhline(bound, color=RED, linestyle="--", linewidth=1, label="bound")
        axes.set_ylim(0, max(bound, *worst, 1) * 1.1)

    return Chart(
        "Staleness",
        "Policy versions between sampling and training; a group beyond the bound is dropped.",
        f"Mean staleness {_from_to(average)}; oldest {max(worst):.0f}, bound {bound}.",
        drawn(draw, xlabel="optimizer step", ylabel="versions"),
    )


def _staleness_of_tokens(steps: Sequence[Record]) -> Chart | None:
    measured = [r for r in steps if r.get("staleness_tokens")]
    if not measured:
        return None
    most = max(len(r["staleness_tokens"]) for r in measured)
    shares = [
        [(r["staleness_tokens"] + [0] * most)[lag] / sum(r["staleness_tokens"]) for r in measured]
        for lag in range(most)
    ]

    def draw(axes: Axes) -> None:
        tones = [str(0.85 - 0.7 * lag / max(most - 1, 1)) for lag in range(most)]
        labels = [str(lag) for lag in range(most)]
        axes.stackplot([r["step"] for r in measured], shares, colors=tones, labels=labels, linewidth=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, 1)

    means = ", ".join(f"{lag} behind {mean(share) or 0:.0%}" for lag, share in enumerate(shares))
    return Chart(
        "Staleness of tokens",
        "Share of the trained tokens by the number of versions between sampling and training.",
        f"Mean shares: {means}.",
        drawn(draw, xlabel="optimizer step", ylabel="share of tokens"),
    )


def _online(steps: Sequence[Record], config: Config) -> Chart | None:
    """Users' answers beside rollouts; None where no step had any."""
    if not any(record.get("online_groups") for record in steps):
        return None
    x, groups = series(steps, "online_groups")
    shares = [number / config.learner.groups_per_step for number in groups]
    oldest_x, oldest = series([r for r in steps if r.get("online_groups")], "online_staleness_max")

    def draw(axes: Axes) -> None:
        axes.fill_between(x, shares, color=BLUE, alpha=0.3, step="mid", linewidth=0, label="share of a step's groups")
        axes.axhline(config.learner.online.share, color=RED, linestyle="--", linewidth=1, label="bound")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, min(1.0, 1.3 * config.learner.online.share) or 1.0)
        right = axes.twinx()
        right.spines["right"].set_visible(False)
        right.grid(False)
        right.plot(oldest_x, oldest, color=ORANGE, linestyle="", marker=".", markersize=4)
        right.set_ylim(bottom=0)
        axes.plot([], [], color=ORANGE, linestyle="", marker=".", label="versions behind (right)")

    return Chart(
        "Users' answers",
        "Share of each step's groups that came from users' conversations, and how many versions the oldest lagged.",
        f"Users' share of groups {_from_to(shares)}, bound {config.learner.online.share:g}; "
        f"oldest {max(oldest):.0f} versions, bound {config.learner.online.max_staleness}.",
        drawn(draw, xlabel="optimizer step", ylabel="share of groups"),
    )


def _mismatch(steps: Sequence[Record]) -> Chart | None:
    x, average = series(steps, "mismatch_mean_abs_logprob")
    if not x:
        return None
    worst_x, worst = series(steps, "mismatch_max_abs_logprob")

    def draw(axes: Axes) -> None:
        axes.plot(x, average, color=BLUE, label="mean")
        axes.plot(worst_x, worst, color=GREY, linewidth=1, label="largest")
        if min(average) > 0 and min(worst) > 0:
            axes.set_yscale("log")

    return Chart(
        "Sampler and trainer",
        "Absolute difference of vLLM's and the learner's log-probs for the same tokens and weights.",
        f"Mean absolute log-prob difference {_from_to(average)}; largest {max(worst):.3g}.",
        drawn(draw, xlabel="optimizer step", ylabel="nats"),
    )


def _idle(history: RunHistory, steps: Sequence[Record]) -> Chart | None:
    intervals = intervals_during(history, steps)
    started = steps[0]["t"] - (steps[0].get("step_s") or 0)
    learner = [(r["t"] - started, r["wait_s"] / r["step_s"]) for r in steps if r.get("step_s")]
    rollout = [(r["t"] - started, r["idle_s"] / r["seconds"]) for r in intervals if r.get("seconds")]
    if not learner:
        return None

    def draw(axes: Axes) -> None:
        for points, color, label in ((learner, BLUE, "learner"), (rollout, ORANGE, "rollout")):
            if points:
                axes.plot([t / 60 for t, _ in points], _smooth([s for _, s in points]), color=color, label=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(0, 1)

    alt = f"Learner idle {mean([s for _, s in learner]) or 0:.0%} of a step on average"
    return Chart(
        "Who waits for whom",
        f"Share of time that each side is idle (mean of {_SMOOTH} points). The side that waits is not the bottleneck.",
        alt + (f", rollout {mean([s for _, s in rollout]) or 0:.0%} of its time." if rollout else "."),
        drawn(draw, xlabel="minutes of training", ylabel="idle"),
    )


def _step_time(steps: Sequence[Record]) -> Chart | None:
    parts = [
        ("wait_s", "wait for groups", GREY),
        ("prepare_s", "build the batch", ORANGE),
        ("transfer_s", "pack and transfer", RED),
        ("compute_s", "compute", BLUE),
        ("publish_s", "publish", GREEN),
        ("save_s", "checkpoint", PURPLE),
    ]
    whole = [r for r in steps if all(r.get(key) is not None for key, _, _ in parts)]
    if not whole:
        return None
    seconds = [values(whole, key) for key, _, _ in parts]
    totals = sorted(map(sum, zip(*seconds, strict=True)))

    def draw(axes: Axes) -> None:
        colors, labels = [color for _, _, color in parts], [label for _, label, _ in parts]
        numbers = [r["step"] for r in whole]
        axes.stackplot(numbers, seconds, colors=colors, labels=labels, linewidth=0, alpha=0.85)
        # The first step compiles; it would flatten all the others.
        axes.set_ylim(0, totals[int(0.97 * (len(totals) - 1))] * 1.1 or 1)

    means = ", ".join(f"{label} {mean(s) or 0:.3f}" for s, (_, label, _) in zip(seconds, parts, strict=True))
    return Chart(
        "Where a step's time goes",
        "Seconds per step; the slowest steps (the first one compiles) are cut off.",
        f"Mean seconds per step: {means}.",
        drawn(draw, xlabel="optimizer step", ylabel="seconds"),
    )
