"""The guard for personal data and secrets: what a person must not find in a stored file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serving_bridge.safety.decisions import REDACTED, Opinion, Span, Stage, Verdict
from serving_bridge.safety.folding import Folded, folded
from serving_bridge.safety.found import Found
from serving_bridge.safety.identifiers import identifiers
from serving_bridge.safety.numbers import numbers
from serving_bridge.safety.payloads import MAX_DEPTH, payloads
from serving_bridge.safety.secrets import secrets

#: Countries whose telephone numbers are known without a word such as "call" beside them.
REGIONS = ("US", "GB", "FR")


class PersonalData:
    """Finds structured personal data and secrets; names of people and places need a model and are not found."""

    name, version = "personal_data", "2"

    def __init__(self, regions: Sequence[str] = REGIONS) -> None:
        self._regions = tuple(regions)

    def judge(self, text: str, stage: Stage, *, is_document: bool = False) -> Opinion:
        """Flags a text with findings; never blocks, since redaction removes them. Time is linear in the text."""
        del stage, is_document
        spans = tuple(self.spans(text))
        categories = tuple(sorted({span.category for span in spans}))
        verdict = Verdict.FLAG if spans else Verdict.ALLOW
        return Opinion(self.name, self.version, verdict, categories, spans, f"{len(spans)} findings" if spans else "")

    def spans(self, text: str) -> list[Span]:
        """Findings by place, without overlaps: the longer wins, then the surer."""
        view = folded(text)
        return _placed(view, _without_overlaps(self._found(view.text, MAX_DEPTH)))

    def _found(self, text: str, depth: int) -> Iterator[Found]:
        yield from identifiers(text)
        yield from numbers(text, self._regions)
        yield from secrets(text)
        if depth:
            for payload in payloads(text):
                inner = min(self._found(folded(payload.text).text, depth - 1), default=None)
                if inner is not None:
                    yield Found(payload.start, payload.end, inner.kind, inner.category, inner.guard, rank=3)


def _without_overlaps(found: Iterator[Found]) -> list[Found]:
    """Of those that share a character the surest stays, then the longest; what is left of others is covered too."""
    kept: list[Found] = []
    for finding in sorted(found):
        if kept and finding.start < kept[-1].end:
            last = kept[-1]
            better = min(last, finding, key=lambda f: (f.rank, f.start - f.end))
            end = max(last.end, finding.end)
            kept[-1] = Found(last.start, end, better.kind, better.category, better.guard, better.rank)
        else:
            kept.append(finding)
    return kept


def _placed(view: Folded, found: Sequence[Found]) -> list[Span]:
    placed: list[Span] = []
    for finding in found:
        start, end = view.original(finding.start, finding.end)
        if not placed or start >= placed[-1].end:
            placed.append(Span(start, end, finding.kind, finding.category, finding.guard))
    return placed


class Redactor:
    """Writes placeholders such as <EMAIL_1>; the same value has the same placeholder as long as the redactor lives.

    One redactor serves one conversation, so that a reader can tell two people apart and know neither.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}

    def redacted(self, text: str, spans: Sequence[Span]) -> str:
        """The text with every span of a redacted category replaced; spans must not overlap."""
        parts, last = [], 0
        for span in sorted(span for span in spans if span.category in REDACTED):
            parts += [text[last : span.start], self._name(span.kind, text[span.start : span.end])]
            last = span.end
        return "".join([*parts, text[last:]])

    def _name(self, kind: str, value: str) -> str:
        key = (kind, "".join(character for character in folded(value).text.lower() if character.isalnum()))
        if key not in self._names:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._names[key] = f"<{kind}_{self._counts[kind]}>"
        return self._names[key]
