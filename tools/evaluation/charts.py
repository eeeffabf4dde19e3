"""The pictures of a suite's result, each with a text that says what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tools.evaluation.shown import TITLES, interval, shown
from tools.reporting import charts as drawing

_BINS = 20


def suite_charts(suite: Mapping[str, Any]) -> list[drawing.Chart]:
    """The charts of one suite of results.json, as far as there is something to show."""
    made = [_shares(suite["metrics"]), _scores(suite["problems"]), _difficulty(suite), _lengths(suite["problems"])]
    return [chart for chart in made if chart is not None]


def _shares(metrics: Mapping[str, Any]) -> drawing.Chart | None:
    rows = [
        (TITLES.get(name, name), metric)
        for name, metric in metrics.items()
        if metric["unit"] == "share" and metric["value"] is not None
    ]
    if not rows:
        return None

    def draw(axes: Axes) -> None:
        for at, (_, metric) in enumerate(rows):
            if metric["low"] is not None:
                axes.plot(
                    [metric["low"], metric["high"]], [at, at], color=drawing.GREY, linewidth=3, solid_capstyle="butt"
                )
            axes.plot(metric["value"], at, color=drawing.BLUE, marker="o", markersize=6, linestyle="")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    told = "; ".join(f"{name} {shown(metric['value'], 'share')} ({interval(metric)})" for name, metric in rows)
    return drawing.Chart(
        "Shares with 95% intervals",
        "Dots are the values, bars their intervals over the problems; wide bars ask for more problems.",
        f"{told}.",
        drawing.drawn(draw, xlabel="share", ylabel="", height=max(1.5, 0.7 + 0.34 * len(rows))),
    )


def _scores(problems: Sequence[Mapping[str, Any]]) -> drawing.Chart | None:
    scores = [score for problem in problems for score in problem["scores"] if score is not None]
    if not scores:
        return None
    low, high = min(0.0, *scores), max(1.0, *scores)
    counts, edges = np.histogram(scores, bins=_BINS, range=(low, high))

    def draw(axes: Axes) -> None:
        axes.bar(edges[:-1], counts, width=np.diff(edges) * 0.92, align="edge", color=drawing.BLUE)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    return drawing.Chart(
        "Scores",
        "Every judged answer; scores of pass or fail stand at 0 and 1.",
        f"{len(scores)} scores from {min(scores):.3g} to {max(scores):.3g}, median {float(np.median(scores)):.3g}.",
        drawing.drawn(draw, xlabel="score", ylabel="answers"),
    )


def _difficulty(suite: Mapping[str, Any]) -> drawing.Chart | None:
    """How many problems pass in how many of their samples."""
    if suite["samples"] < 2:
        return None
    passed = [problem["verdicts"].count("pass") for problem in suite["problems"]]
    counts = np.bincount(passed, minlength=suite["samples"] + 1)

    def draw(axes: Axes) -> None:
        colors = [drawing.RED, *[drawing.GREY] * (len(counts) - 2), drawing.GREEN]
        axes.bar(range(len(counts)), counts, color=colors, width=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    return drawing.Chart(
        "Difficulty of the problems",
        "Left: never solved. Right: solved each time. What lies between can still be learned from.",
        f"{counts[0]} problems never pass, {counts[-1]} always, of {len(passed)}.",
        drawing.drawn(draw, xlabel=f"passed answers of {suite['samples']}", ylabel="problems"),
    )


def _lengths(problems: Sequence[Mapping[str, Any]]) -> drawing.Chart | None:
    known = all(None not in problem["tokens"] for problem in problems)
    unit = "tokens" if known else "characters"
    lengths = [
        (length, verdict)
        for problem in problems
        for length, verdict in zip(problem[unit], problem["verdicts"], strict=True)
    ]
    if not lengths:
        return None
    groups = {
        "pass": [length for length, verdict in lengths if verdict == "pass"],
        "do not pass": [length for length, verdict in lengths if verdict != "pass"],
    }
    top = max(length for length, _ in lengths) or 1

    def draw(axes: Axes) -> None:
        axes.hist(
            list(groups.values()),
            bins=_BINS,
            range=(0, top),
            stacked=True,
            color=[drawing.GREEN, drawing.GREY],
            label=list(groups),
        )
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    medians = ", ".join(f"median {float(np.median(g)):.0f} of those that {name}" for name, g in groups.items() if g)
    return drawing.Chart(
        "Lengths",
        "Every answer, those that pass and those that do not. A heap at the right end was cut.",
        f"{len(lengths)} answers of up to {top} {unit}: {medians}.",
        drawing.drawn(draw, xlabel=unit, ylabel="answers"),
    )
