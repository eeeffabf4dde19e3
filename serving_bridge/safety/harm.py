"""The guard for harm: rules of words by category, read through disguises, with idioms and fiction left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from serving_bridge.safety.decisions import Opinion, Span, Stage, Verdict
from serving_bridge.safety.disguises import readings
from serving_bridge.safety.folding import folded
from serving_bridge.safety.harm_context import FICTION, HARMLESS, NONSENSE
from serving_bridge.safety.harm_rules import RULES
from serving_bridge.safety.harm_words import CURIOUS, EVADE, SAFE
from serving_bridge.safety.linear import PatternSet, compiled

#: Characters before a match in which a word such as "prevent" still governs it.
_BEFORE = 14
#: Categories that fiction explains: one may ask how to kill somebody in a game.
_FICTIONAL = frozenset({"violence", "crime", "weapons", "fraud", "cyber", "drugs"})
#: Words that make a thing for the real world, whatever it is about.
_MADE = re.compile(r"\b(?:creat|writ|develop|design|mak|produc|generat|glorif|promot|encourag|publish|compos)\w*\b")
_TITLE = re.compile(r"\b[Ii]n (?:the |a )?[A-Z][\w']*(?:(?: |: )(?:[A-Z][\w'.]*|\d+|of|the|and|&))*[?.!]?\s*$")
_PLACES = re.compile(
    r"\b(?:America|USA|US|U\.S|UK|England|London|Paris|Germany|France|China|Russia|India|Canada|Mexico|Texas|California|"
    r"Florida|York|Europe|Africa|Asia|Japan|Israel|Iran|Iraq|Syria|Ukraine|Australia|Brazil|Spain|Italy|Chicago|Angeles|"
    r"Washington|Afghanistan|Poland|Cambodia|Germany|English|January|February|March|April|May|June|July|August|"
    r"September|October|November|December|Congress|Python|Linux|Windows|AWS)\b"
)
_LONGEST_QUESTION = 160


@dataclass(frozen=True)
class _Hit:
    start: int
    end: int
    category: str


class HarmRules:
    """Blocks texts in which somebody asks for, or gives, help with harm. Rules of words miss what is said otherwise."""

    name, version = "harm_rules", "1"

    def judge(self, text: str, stage: Stage, *, is_document: bool = False) -> Opinion:
        """Blocks by the categories of the rules that match; time is linear in the text."""
        del stage, is_document
        view = folded(text)
        spans = []
        for reading in readings(view.text):
            for hit in _hits(reading.text, text):
                start, end = (hit.start, hit.end) if reading.is_in_place else (0, len(view.text))
                spans.append(Span(*view.original(start, end), hit.category, hit.category, self.name))
        found = tuple(sorted(set(spans)))
        categories = tuple(sorted({span.category for span in found}))
        reason = f"rules for {', '.join(categories)}" if found else ""
        return Opinion(self.name, self.version, Verdict.BLOCK if found else Verdict.ALLOW, categories, found, reason)


def _hits(reading: str, original: str) -> Iterator[_Hit]:
    text = _blanked(reading.lower())
    for match in _rules().matches(text):
        hit = _Hit(match.start, match.end, RULES[match.name][0])
        if not _is_excused(hit, text, original):
            yield hit


def _is_excused(hit: _Hit, text: str, original: str) -> bool:
    """Whether the words around say that it is about prevention, fiction or nonsense."""
    begin = max(0, hit.start - _BEFORE)
    if hit.category != "privacy" and SAFE.search(text, begin, hit.end) and not EVADE.search(text, begin, hit.end + 60):
        return True
    if hit.category != "hate" and CURIOUS.search(text, begin, hit.end):
        return True
    low, high = max(0, hit.start - 2 * _LONGEST_QUESTION), hit.end + 2 * _LONGEST_QUESTION
    first = max(max(text.rfind(mark, low, hit.start) for mark in "\n.!?") + 1, low)
    last = min(
        (place for mark in "\n.!?" if (place := text.find(mark, hit.end, high)) >= 0), default=min(high, len(text))
    )
    sentence = text[first:last]
    if hit.category == "hate" and compiled(NONSENSE).search(sentence.encode("ascii")):
        return True
    if hit.category not in _FICTIONAL or _MADE.search(sentence):
        return False
    if compiled(FICTION).search(sentence.encode("ascii")):
        return True
    asked = original.strip()
    return len(asked) < _LONGEST_QUESTION and bool(_TITLE.search(asked)) and not _PLACES.search(asked)


def _blanked(text: str) -> str:
    """The text with idioms and harmless objects as one long word each."""
    parts, last = [], 0
    for start, end in sorted((match.start, match.end) for match in _harmless().matches(text)):
        if start >= last:
            parts += [text[last:start], "_" * (end - start)]
            last = end
    return "".join([*parts, text[last:]])


@cache
def _rules() -> PatternSet:
    return PatternSet({name: pattern for name, (_, pattern) in RULES.items()})


@cache
def _harmless() -> PatternSet:
    return PatternSet({str(number): rf"\b(?:{pattern})\b" for number, pattern in enumerate(HARMLESS)})
