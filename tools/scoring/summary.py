"""What a file of scored answers comes to: verdicts, agreement with labels, slowest lines, most frequent reasons."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from learner_jax.runtime import printable
from tools.scoring.scored import Scored

_SLOWEST = 5
_REASONS = 8
_DISAGREEING = 10
#: kinds of reasons that are counted apart; those that come later are counted together
_MAX_KINDS = 2000
_MAX_SHOWN = 160
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass
class Summary:
    """Counts of scored lines; of constant size.

    Attributes:
      num_unread_labels: labels that are neither true nor false.
      agreement: by label and whether the answer passes; None for a line without a verdict.
      disagreeing: numbers of the first lines whose verdict is not their label.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    num_lines: int = 0
    num_bad: int = 0
    num_judged: int = 0
    total_score: float = 0.0
    total_s: float = 0.0
    num_unread_labels: int = 0
    agreement: Counter[tuple[bool, bool | None]] = field(default_factory=Counter)
    disagreeing: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, int, str]] = field(default_factory=list)

    def add(self, scored: Scored) -> None:
        """Counts a line."""
        self.num_lines += 1
        self.num_bad += scored.is_bad
        self.verdicts[scored.verdict] += 1
        self.total_s += scored.seconds
        if scored.score is not None:
            self.num_judged += 1
            self.total_score += scored.score
        self.num_unread_labels += scored.label == "unread"
        if isinstance(scored.label, bool):
            passes = None if scored.score is None else scored.passes
            self.agreement[scored.label, passes] += 1
            if passes != scored.label and len(self.disagreeing) < _DISAGREEING:
                self.disagreeing.append(scored.number)
        if scored.reason:
            kind = _kind(scored.reason)
            is_counted = kind in self.reasons or len(self.reasons) < _MAX_KINDS
            self.reasons[kind if is_counted else "(other reasons)"] += 1
        heapq.heappush(self.slowest, (scored.seconds, scored.number, scored.verdict))
        if len(self.slowest) > _SLOWEST:
            heapq.heappop(self.slowest)

    @property
    def num_labelled(self) -> int:
        return sum(self.agreement.values())

    @property
    def num_agreeing(self) -> int:
        """Lines whose verdict is their label; a line without a verdict is none of them."""
        return self.agreement[True, True] + self.agreement[False, False]

    def as_fields(self) -> dict[str, Any]:
        """The counts, for JSON."""
        labelled: dict[str, Any] | None = None
        if self.num_labelled:
            labelled = {
                "lines": self.num_labelled,
                "agreeing": self.num_agreeing,
                "agreement": self.num_agreeing / self.num_labelled,
                "false_pass": self.agreement[False, True],
                "false_fail": self.agreement[True, False],
                "no_verdict": self.agreement[True, None] + self.agreement[False, None],
                "first_disagreeing_lines": self.disagreeing,
            }
        return {
            "lines": self.num_lines,
            "bad_lines": self.num_bad,
            "verdicts": dict(self.verdicts.most_common()),
            "mean_score": self.total_score / self.num_judged if self.num_judged else None,
            "labels": labelled,
            "unread_labels": self.num_unread_labels,
            "slowest": [
                {"line": number, "seconds": round(seconds, 6), "verdict": verdict}
                for seconds, number, verdict in sorted(self.slowest, reverse=True)
            ],
            "reasons": dict(self.reasons.most_common(_REASONS)),
        }


def print_summary(summary: Summary, console: Console, *, wall_s: float) -> None:
    """Prints the tables for people."""
    table = Table("verdict", "lines", "share", title=f"{summary.num_lines} answers")
    for verdict, count in summary.verdicts.most_common():
        table.add_row(printable(verdict), str(count), f"{count / summary.num_lines:.1%}")
    console.print(table)
    if summary.num_judged:
        mean = summary.total_score / summary.num_judged
        speed = f", {summary.num_lines / wall_s:.0f} answers/s" if wall_s > 0 else ""
        console.print(f"mean score {mean:.4f} of {summary.num_judged} judged answers{speed}")
    if summary.num_bad:
        console.print(f"{summary.num_bad} lines are no JSON object with a row and an answer")
    if summary.num_labelled:
        _print_agreement(summary, console)
    if summary.num_unread_labels:
        console.print(f"{summary.num_unread_labels} labels are neither true nor false, and were left out")
    if summary.reasons:
        table = Table("lines", "most frequent reasons (texts and numbers left out)")
        for reason, count in summary.reasons.most_common(_REASONS):
            table.add_row(str(count), printable(reason)[:_MAX_SHOWN])
        console.print(table)
    if summary.slowest:
        table = Table("line", "seconds", "verdict", title="slowest")
        for seconds, number, verdict in sorted(summary.slowest, reverse=True):
            table.add_row(str(number), f"{seconds:.4f}", printable(verdict))
        console.print(table)


def _print_agreement(summary: Summary, console: Console) -> None:
    table = Table("label", "passes", "fails", "no verdict", title="agreement with labels")
    for label in (True, False):
        counts = (summary.agreement[label, passes] for passes in (True, False, None))
        table.add_row("right" if label else "wrong", *map(str, counts))
    console.print(table)
    share = summary.num_agreeing / summary.num_labelled
    where = f"; others begin at lines {', '.join(map(str, summary.disagreeing))}" if summary.disagreeing else ""
    console.print(f"{share:.2%} of {summary.num_labelled} labels agree{where}")


def _kind(reason: str) -> str:
    """A reason without what differs from answer to answer."""
    return _NUMBER.sub("N", _QUOTED.sub("'...'", reason[:400]))[:_MAX_SHOWN]
