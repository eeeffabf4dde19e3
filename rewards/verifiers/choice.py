"""`choice`: the answer takes the right one of several given choices.

One place of the answer is looked at: its box, its mark, the last "answer is", else its last line. An answer that names
several choices there takes none of them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.contracts import RewardResult, scored
from rewards.mathematics import MARK, final_answer
from rewards.verifiers.columns import as_text, wrong
from rewards.verifiers.fuzzy import normalised
from rewards.verifiers.verifier import Plain, Row, RowError

_MAX_CHOICES = 26
_MAX_CHARACTERS = 200_000
_MAX_LINE = 4000
_COLUMNS = ("choices", "options")
_STATED = re.compile(
    r"\b(?:answer|option|choice|alternative)\b[*_\s]*(?:is|are|must be|would be|should be|:|=)?"
    r"(?:\s+(?:option|choice))?[*_\s:]*",
    re.I,
)
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed|mbox)\s*(?=\{)|[*_`${}\\]|</?[a-z]+>")
_JOINED = re.compile(
    r"[\s,;/&|()\[\].:*-]*(?:(?:or|and|and/or|either|maybe|perhaps|possibly|also|option|choice|both)\b[\s(]*)*", re.I
)
_DENIED = re.compile(
    r"\b(?:not|never|neither|nor|except|cannot|wrong|incorrect|eliminate|rule out)\b|n't\b|n\u2019t\b", re.I
)
_REFUTED = re.compile(
    r"\W{0,3}(?:(?:is|was|are|were|can|could|does)\s*(?:not\b|n['\u2019]t\b|wrong|incorrect)|wrong|incorrect)", re.I
)
#: after "A" or "I": a word that it belongs to
_AS_WORD = re.compile(r"\s+(?!(?:because|since|as|is|or|and)\b)[a-z]")
_UNSURE = re.compile(r"\b(?:either|neither|both|none of|all of)\b", re.I)


@dataclass(frozen=True)
class _Question:
    """The labels that may be chosen, the texts that they stand for (none if unknown), and the right ones."""

    labels: tuple[str, ...]
    texts: Mapping[str, str]
    right: frozenset[str]


def create(*, deadline_s: float, num_workers: int) -> Plain:
    return Plain(judge)


def judge(answer: str, row: Row) -> RewardResult:
    """Whether the answer takes the choice in `row["answer"]`: a label, its text, or its index from 0 on.

    A list of them asks for exactly these. `row["choices"]` or `row["options"]`, where there is one, holds the choices:
    a list of texts (A, B, ...), an object from label to text, or an object with the lists "label" and "text".

    Raises:
      RowError: the columns are missing, or don't go together.
    """
    question = _question(row)
    taken = _taken(answer[-_MAX_CHARACTERS:], question)
    is_right = taken == question.right
    expected = ", ".join(sorted(question.right))
    said = f"found {', '.join(sorted(taken))}" if taken else "found no clear choice"
    finding = "correct" if is_right else "wrong" if taken else "unparseable"
    return scored(float(is_right), {}, reasons=(f"expected {expected}, {said}",), finding=finding)


def _question(row: Row) -> _Question:
    labels, texts = _choices(row)
    value = row.get("answer")
    if value is None:
        raise RowError("the row has no 'answer'")
    items = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise RowError("row.answer is an empty list")
    return _Question(labels, texts, frozenset(_label(item, labels, texts) for item in items))


def _choices(row: Row) -> tuple[tuple[str, ...], Mapping[str, str]]:
    value = next((row[column] for column in _COLUMNS if row.get(column) is not None), None)
    if value is None:
        return tuple(string.ascii_uppercase), {}
    if isinstance(value, Mapping) and isinstance(names := value.get("label", value.get("labels")), Sequence):
        texts = value.get("text", value.get("texts"))
        pairs = list(zip(names, texts, strict=False)) if isinstance(texts, list | tuple) else []
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):
        pairs = list(zip(string.ascii_uppercase, value, strict=False))
    else:
        pairs = []
    if not 1 < len(pairs) <= _MAX_CHOICES:
        raise wrong("row.choices", value, f"2 to {_MAX_CHOICES} choices")
    known = {as_text(name, "row.choices").strip(" ().").upper(): as_text(text, "row.choices") for name, text in pairs}
    if len(known) < len(pairs) or "" in known:
        raise wrong("row.choices", value, "labels that differ")
    return tuple(known), known


def _label(value: Any, labels: tuple[str, ...], texts: Mapping[str, str]) -> str:
    if type(value) is int and str(value) not in labels:
        if not texts or not 0 <= value < len(labels):
            raise wrong("row.answer", value, f"an index from 0 to {len(labels) - 1}" if texts else "a label")
        return labels[value]
    text = as_text(value, "row.answer")
    bare = text.strip().strip("().:[] ").upper()
    if bare in labels:
        return bare
    if (begun := re.match(r"\s*\(?([A-Za-z0-9]{1,2})[).:]\s", text)) and begun[1].upper() in labels:
        return begun[1].upper()
    same = [label for label, other in texts.items() if normalised(other) == normalised(text)]
    if len(same) != 1:
        raise wrong("row.answer", value, f"one of the labels {', '.join(labels)[:100]}, or the text of one choice")
    return same[0]


def _taken(answer: str, question: _Question) -> frozenset[str]:
    """The labels that the answer takes; none if that is not clear."""
    for place in _places(answer):
        if taken := _labels_in(place, question):
            return taken
        if label := _of_text(place, question):
            return frozenset({label})
        if _mentions(place, question.labels):
            return frozenset()
    return frozenset()


def _places(answer: str) -> list[str]:
    """Where the choice is stated: of these the first that names one counts."""
    if MARK in answer or "\\boxed" in answer:
        return [_MARKUP.sub("", final_answer(answer))]
    plain = _MARKUP.sub("", answer)
    lines = [line.strip() for line in plain.strip().splitlines() if line.strip()] or [""]
    stated = list(_STATED.finditer(plain))
    last_line = lines[-1][-_MAX_LINE:]
    if stated:
        after = plain[stated[-1].end() :][:_MAX_LINE].strip()
        sentence = re.split(r"(?<=[a-z)\"'])[.!](?:\s|$)|\n\s*\n", after, maxsplit=1)[0]
        return [sentence, last_line]
    return [last_line]


def _labels_in(place: str, question: _Question) -> frozenset[str]:
    mentions = _mentions(place, question.labels)
    if not mentions:
        return frozenset()
    begin, end, first = mentions[0]
    before = place[:begin]
    if _DENIED.search(before) or (_UNSURE.search(before) and len(question.right) == 1):
        return frozenset()
    taken, position = [first], end
    for begin, end, label in mentions[1:]:
        if not _JOINED.fullmatch(place[position:begin]):
            break
        taken.append(label)
        position = end
    if _REFUTED.match(place[position:]):
        return frozenset()
    unclear = len(set(taken)) > 1 and re.search(
        r"\b(?:or|maybe|perhaps|possibly)\b|/", place[mentions[0][0] : position]
    )
    return frozenset() if unclear else frozenset(taken)


def _mentions(place: str, labels: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """Begin, end and label of those that stand alone; "A" and "I" before a word are words."""
    found = []
    whole = place.strip().strip("().:[]!, ")
    if whole.upper() in labels:
        begin = place.index(whole)
        return [(begin, begin + len(whole), whole.upper())]
    for match in re.finditer(r"(?<![\w'\u2019])(\(?)([A-Za-z0-9]{1,2})(?![\w'\u2019])([).:,]?)", place):
        label = match[2]
        enclosed = bool(match[1]) and match[3] == ")"
        if label.upper() not in labels or (label != label.upper() and not enclosed):
            continue
        if label in ("A", "I") and not enclosed and not match[3] and _AS_WORD.match(place[match.end() :]):
            continue
        found.append((match.start(), match.end(2), label.upper()))
    return found


def _of_text(place: str, question: _Question) -> str:
    """The label of the one choice whose text is all that stands there; empty if there is none."""
    said = normalised(place)
    same = [label for label, text in question.texts.items() if said and normalised(text) == said]
    return same[0] if len(same) == 1 else ""
