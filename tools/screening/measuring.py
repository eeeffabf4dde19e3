"""How well the guards do on data with answers: recall, false refusals and redaction, with intervals."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from learner_jax.runtime import WeirError
from serving_bridge.safety import REDACTED, Checker, Stage, Verdict
from tools.shares import wilson

#: Marked kinds that have a form; names, places and titles have none and need a model.
STRUCTURED = frozenset(
    {"PHONE_NUMBER", "CREDIT_CARD", "IP_ADDRESS", "EMAIL_ADDRESS", "US_SSN", "IBAN_CODE", "US_DRIVER_LICENSE", "CRYPTO"}
)
_HALVES = ("even", "odd")


@dataclass(frozen=True)
class Share:
    """A share of cases with its 95% interval (Wilson).

    Attributes:
      name: what was counted.
      count, total: cases that were so, of all.
    """

    name: str
    count: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.count, self.total)


def measured(folder: Path, checker: Checker) -> list[Share]:
    """The shares of every data set that the folder has, each in two halves: the even rows, and the odd ones.

    Raises:
      WeirError: it has none of them.
    """
    found = [Share(name, _num_blocked(checker, texts), len(texts)) for name, texts in labelled_prompts(folder)]
    found += [
        Share(f"{name}, {half} rows", *counts)
        for start, half in enumerate(_HALVES)
        for name, counts in _personal(folder, checker, start)
    ]
    if not found:
        raise WeirError(f"expected safety_prompts/, xstest/ or pii_presidio/ in {str(folder)[:300]!a}")
    return found


def labelled_prompts(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, prompts) of each half of the sets of prompts that the folder has."""
    path = folder / "safety_prompts" / "advbench.csv"
    if path.is_file():
        rows = _rows(path)
        for start, half in enumerate(_HALVES):
            yield f"AdvBench: harmful requests blocked, {half} rows", [row["goal"] for row in rows[start::2]]
    path = folder / "xstest" / "xstest_prompts.csv"
    if path.is_file():
        rows = _rows(path)
        for start, half in enumerate(_HALVES):
            for label, name in (("safe", "safe prompts refused"), ("unsafe", "unsafe prompts blocked")):
                prompts = [row["prompt"] for row in rows[start::2] if row["label"] == label]
                yield f"XSTest: {name}, {half} rows", prompts


def _personal(folder: Path, checker: Checker, start: int) -> Iterator[tuple[str, tuple[int, int]]]:
    path = folder / "pii_presidio" / "generated_small.json"
    if not path.is_file():
        return
    covered = marked = touched = clean = 0
    for row in json.loads(path.read_text())[start::2]:
        text = row["full_text"]
        spans = checker.check(text, Stage.TRAINING_DATA).spans
        redacted = {place for span in spans if span.category in REDACTED for place in range(span.start, span.end)}
        named: set[int] = set()
        for span in row["spans"]:
            places = set(range(span["start_position"], span["end_position"]))
            named |= places
            if span["entity_type"] in STRUCTURED:
                marked += 1
                covered += places <= redacted
        for word in re.finditer(r"\S+", text):
            places = set(range(*word.span()))
            if not places & named:
                clean += 1
                touched += bool(places & redacted)
    yield "Presidio: structured spans redacted", (covered, marked)
    yield "Presidio: clean tokens redacted", (touched, clean)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _num_blocked(checker: Checker, texts: Iterable[str]) -> int:
    return sum(checker.check(text, Stage.PROMPT).verdict is Verdict.BLOCK for text in texts)
