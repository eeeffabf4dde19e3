"""Several opinions become one decision: who fails closed, which categories block, how models vote."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from serving_bridge.safety.decisions import REDACTED, Decision, Opinion, Span, Verdict
from serving_bridge.safety.personal_data import Redactor


def decided(
    text: str, opinions: Sequence[Opinion], *, block: Collection[str], closed: bool, redactor: Redactor
) -> Decision:
    """One decision from the opinions of all guards.

    A guard blocks by a category in `block`, or says `block` itself without a category; what else it found flags.

    Args:
      block: categories that block.
      closed: whether a guard that failed holds the text back.
      redactor: keeps the placeholders of the conversation.
    """
    spans = tuple(sorted({span for opinion in opinions for span in opinion.spans}))
    categories = tuple(sorted({category for opinion in opinions for category in opinion.categories}))
    return Decision(
        verdict=_verdict(opinions, block, closed=closed),
        categories=categories,
        spans=spans,
        redacted=redactor.redacted(text, _apart(spans)),
        opinions=tuple(opinions),
    )


def _verdict(opinions: Sequence[Opinion], block: Collection[str], *, closed: bool) -> Verdict:
    effects = {_effect(opinion, block) for opinion in opinions}
    if Verdict.BLOCK in effects:
        return Verdict.BLOCK
    if Verdict.ERROR in effects and closed:
        return Verdict.ERROR
    return Verdict.FLAG if effects & {Verdict.FLAG, Verdict.ERROR} else Verdict.ALLOW


def _effect(opinion: Opinion, block: Collection[str]) -> Verdict:
    if opinion.verdict is not Verdict.BLOCK or not opinion.categories:
        return opinion.verdict
    return Verdict.BLOCK if any(category in block for category in opinion.categories) else Verdict.FLAG


def _apart(spans: Sequence[Span]) -> list[Span]:
    """The spans that redaction replaces; where two overlap the first one reaches to the end of both."""
    kept: list[Span] = []
    for span in spans:
        if span.category not in REDACTED:
            continue
        if kept and span.start < kept[-1].end:
            last = kept[-1]
            kept[-1] = Span(last.start, max(last.end, span.end), last.kind, last.category, last.guard)
        else:
            kept.append(span)
    return kept
