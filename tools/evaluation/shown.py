"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from learner_jax.runtime import printable

_MAX_LISTED = 20
#: Name of a metric in results -> what people read.
TITLES = {
    "mean_score": "mean score",
    "tokens": "tokens per answer",
    "characters": "characters per answer",
    "truncated": "cut at the longest length",
    "refused": "refused",
    "format_errors": "format errors",
    "turns": "turns per sample",
}


def print_results(tree: Mapping[str, Any], console: Console) -> None:
    """One table for each suite, and its notes."""
    for suite in tree["suites"]:
        title = f"{suite['name']}: {suite['num_problems']} problems, {suite['samples']} samples each"
        table = Table(
            "metric", "value", "95% interval", "problems", box=None, title=escape(title), title_justify="left"
        )
        for name, metric in suite["metrics"].items():
            if metric["value"] is not None:
                table.add_row(
                    TITLES.get(name, name), shown(metric["value"], metric["unit"]), interval(metric), number(metric)
                )
        console.print(table)
        if "by_turns" in suite:
            console.print(turns_text(suite), markup=False, highlight=False, soft_wrap=True)
        if "contamination" in suite:
            console.print(overlap_text(suite), markup=False, highlight=False, soft_wrap=True)
        for note in suite["notes"]:
            console.print(f"note: {printable(note)}", markup=False, highlight=False, soft_wrap=True)


def turns_text(suite: Mapping[str, Any]) -> str:
    """How samples of so many turns did, in a sentence."""
    told = [
        f"{found['samples']} of {found['turns']} turns: {found['passed']:.1%} passed, "
        f"mean score {found['mean_score']:.3f}"
        for found in suite["by_turns"]
    ]
    return f"by turns: {'; '.join(told) or 'nothing was judged'}"


def overlap_text(suite: Mapping[str, Any]) -> str:
    """What a suite shares with training prompts, in a sentence."""
    found = suite["contamination"]
    names = found["problems"]
    listed = f": {', '.join(names[:_MAX_LISTED])}" + (", ..." if len(names) > _MAX_LISTED else "") if names else ""
    return printable(
        f"contamination: {found['num_overlapping']} of {suite['num_problems']} problems ({found['share']:.1%}) share "
        f"{found['ngram']} words in a row with one of {found['num_training_prompts']} training prompts of "
        f"{found['source']}; {found['num_identical']} are the same{listed}"
    )


def shown(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A metric's value: shares in percent, scores with three digits, lengths with one."""
    if value is None:
        return "n/a"
    sign = "+" if signed else ""
    match unit:
        case "share":
            return f"{100 * value:{sign}.1f}%"
        case "score":
            return f"{value:{sign}.3f}"
    return f"{value:{sign},.1f}"


def interval(metric: Mapping[str, Any]) -> str:
    """The interval of an estimate, "low to high"."""
    if metric["low"] is None:
        return "n/a"
    return f"{shown(metric['low'], metric['unit'])} to {shown(metric['high'], metric['unit'])}"


def number(metric: Mapping[str, Any]) -> str:
    """Problems that a mean is over, and their clusters where they have some."""
    problems, clusters = metric["num_problems"], metric["num_clusters"]
    return str(problems) if clusters == problems else f"{problems} in {clusters} clusters"
