"""Answers for people to read: kept up to a bound, found by text, reward and step, and put beside others to a prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from tools.dashboard.rows import is_number
from tools.dashboard.texts import line, shown

_MAX_PROMPT, _MAX_EXPECTED = 3000, 500
#: Answers to one prompt in a reply at most, the newest.
_MAX_BESIDE = 24
_MAX_PARTS = 12


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
      source: "held-out" for greedy answers to problems that are never trained on, "training" for sampled ones.
      when: "before", "after", or "step N".
      reward: score of a held-out answer, total reward of a sampled one; None where it was not judged.
      versions: oldest and newest policy version that sampled it; empty where it is not known.
      tokens: its length; None where it is not known.
      ended: "length" where it was cut.
    """

    source: str
    when: str
    step: int | None
    prompt: str
    answer: str
    expected: str
    reward: float | None
    verdict: str
    parts: Mapping[str, float]
    versions: Sequence[int]
    tokens: int | None = None
    ended: str = ""


def held_out_answers(record: Mapping[str, Any], *, when: str, step: int) -> Iterable[Answer]:
    """The sample answers of an `evaluation` or `heldout` event.

    Servers that are started for an evaluation alone serve no published version: only `heldout` events tell one.
    """
    versions = record.get("versions") or () if record["event"] == "heldout" else ()
    for sample in record.get("samples") or ():
        if isinstance(sample, Mapping) and isinstance(sample.get("prompt"), str):
            score = sample.get("score")
            yield Answer(
                source="held-out",
                when=when,
                step=step,
                prompt=shown(sample["prompt"], _MAX_PROMPT),
                answer=shown(sample.get("answer")),
                expected=shown(sample.get("expected"), _MAX_EXPECTED),
                reward=float(score) if is_number(score) else None,
                verdict=line(sample.get("verdict") or "", 80),
                parts={},
                versions=[int(v) for v in versions if is_number(v)][:2],
            )


@dataclass(frozen=True)
class Wanted:
    """What a reader looks for; None and "" take all.

    Attributes:
      text: in the prompt or the answer, in upper or lower case.
      runs: numbers of runs.
      page: of prompts, from 0.
    """

    text: str = ""
    source: str = ""
    low: float | None = None
    high: float | None = None
    first_step: int | None = None
    last_step: int | None = None
    runs: frozenset[int] | None = None
    page: int = 0
    per_page: int = 20

    def takes(self, run: int, answer: Answer) -> bool:
        if self.runs is not None and run not in self.runs:
            return False
        if self.source and answer.source != self.source:
            return False
        if self.low is not None and (answer.reward is None or answer.reward < self.low):
            return False
        if self.high is not None and (answer.reward is None or answer.reward > self.high):
            return False
        if self.first_step is not None and (answer.step is None or answer.step < self.first_step):
            return False
        if self.last_step is not None and (answer.step is None or answer.step > self.last_step):
            return False
        text = self.text.casefold()
        return not text or text in answer.prompt.casefold() or text in answer.answer.casefold()


class AnswerBook:
    """Answers of all runs: the newest of each source, up to a number and a size.

    Args:
      most: answers of each source.
      most_characters: of their texts together, of each source.
    """

    def __init__(self, *, most: int = 3000, most_characters: int = 8_000_000) -> None:
        self._most, self._most_characters = most, most_characters
        self._kept: dict[str, deque[tuple[int, int, Answer]]] = {}
        self._characters: dict[str, int] = {}
        self._numbers = count(1)
        self.serial = 0

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())

    def add(self, run: int, answers: Iterable[Answer]) -> None:
        for answer in answers:
            kept = self._kept.setdefault(answer.source, deque())
            self.serial = next(self._numbers)
            kept.append((self.serial, run, answer))
            size = self._characters.get(answer.source, 0) + _size(answer)
            while len(kept) > self._most or size > self._most_characters:
                size -= _size(kept.popleft()[2])
            self._characters[answer.source] = size

    def forget(self, run: int) -> None:
        """Takes a run's answers out."""
        for source, kept in self._kept.items():
            self._kept[source] = deque(row for row in kept if row[1] != run)
            self._characters[source] = sum(_size(row[2]) for row in self._kept[source])

    def found(self, wanted: Wanted) -> dict[str, Any]:
        """The prompts with answers that a reader looks for, the newest first; of each all kept answers that fit."""
        prompts: dict[str, list[tuple[int, int, Answer]]] = {}
        rows = sorted((row for kept in self._kept.values() for row in kept), key=lambda row: -row[0])
        for row in rows:
            if wanted.takes(row[1], row[2]):
                prompts.setdefault(row[2].prompt, []).append(row)
        first = wanted.page * wanted.per_page
        page = list(prompts.items())[first : first + wanted.per_page]
        return {
            "serial": self.serial,
            "kept": len(self),
            "prompts": len(prompts),
            "answers": sum(len(rows) for rows in prompts.values()),
            "page": wanted.page,
            "pages": -(-len(prompts) // wanted.per_page),
            "shown": [_beside(prompt, rows) for prompt, rows in page],
        }


def _beside(prompt: str, rows: Sequence[tuple[int, int, Answer]]) -> dict[str, Any]:
    """Answers to one prompt, side by side: by run, in the order in which they came."""
    ordered = sorted(rows[:_MAX_BESIDE], key=lambda row: (row[1], row[0]))
    return {
        "prompt": prompt,
        "expected": next((row[2].expected for row in ordered if row[2].expected), ""),
        "more": max(0, len(rows) - _MAX_BESIDE),
        "answers": [{"id": number, "run": run, **_fields(answer)} for number, run, answer in ordered],
    }


def _fields(answer: Answer) -> dict[str, Any]:
    fields = asdict(answer)
    del fields["prompt"], fields["expected"]
    fields["parts"] = {line(name, 60): value for name, value in list(answer.parts.items())[:_MAX_PARTS]}
    return fields


def _size(answer: Answer) -> int:
    return len(answer.prompt) + len(answer.answer) + len(answer.expected)
