"""What a final answer earns where documents may hold the answer or not: the verifier's score, citations, abstaining."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.contracts import RewardResult, Verdict
from rewards.settings import EpisodeSettings

_CITATION = re.compile(r"\[([^\[\]\n]{1,200})\]")


@dataclass(frozen=True)
class Earned:
    """What an answer earned.

    Attributes:
      reward: None where the verifier failed.
    """

    reward: float | None
    verdict: Verdict
    parts: Mapping[str, float]
    reasons: tuple[str, ...]


def citations(answer: str) -> tuple[str, ...]:
    """Ids in square brackets, each once, in the order of the text; `[a, b]` and `[a][b]` cite two."""
    found = [part.strip() for group in _CITATION.findall(answer) for part in re.split(r"[,;]", group)]
    return tuple(dict.fromkeys(part for part in found if part))


def without_citations(answer: str, known: Collection[str]) -> str:
    """The answer as verifiers read it: without the citations of documents that are known."""

    def kept(found: re.Match[str]) -> str:
        parts = [part.strip() for part in re.split(r"[,;]", found.group(1))]
        return "" if all(part in known for part in parts) else found.group(0)

    return _CITATION.sub(kept, answer).strip()


def abstains(answer: str, phrases: Collection[str]) -> bool:
    """Whether the answer says that one does not know, and nothing else: a guess beside it would be paid twice."""
    said = _plain(_CITATION.sub("", answer))
    return any(said == _plain(phrase) for phrase in phrases)


def earned(
    result: RewardResult, answer: str, *, row: Mapping[str, Any], found: Collection[str], settings: EpisodeSettings
) -> Earned:
    """What a final answer earns.

    Args:
      result: the verifier's, on the answer without its citations.
      found: ids of the documents that the policy was shown.
    """
    is_answerable = bool(row.get(settings.answerable_column, True)) if settings.answerable_column else True
    knows_not = abstains(answer, settings.abstain_phrases)
    parts = {**result.parts, "abstained": float(knows_not)}
    if not is_answerable:
        if knows_not:
            return Earned(settings.abstain_reward, "pass", parts, ())
        return Earned(settings.invented_reward, "fail", parts, ("the documents hold no answer",))
    if result.score is None:
        return Earned(None, result.verdict, {}, result.reasons)
    if knows_not and result.verdict != "pass":
        return Earned(settings.abstain_anyway, "fail", parts, ("the documents hold an answer", *result.reasons))
    weight = settings.citation_weight
    if not weight:
        return Earned(result.score, result.verdict, parts, result.reasons)
    cited = citation_score(citations(answer), found=found, wanted=_wanted(row, settings.documents_column))
    parts["citations"] = cited
    return Earned(result.score * (1 - weight + weight * cited), result.verdict, parts, result.reasons)


def citation_score(cited: Collection[str], *, found: Collection[str], wanted: Collection[str] | None) -> float:
    """How well an answer cites, from 0 to 1; a document that the policy was not shown counts as wrong.

    With the wanted documents known it is the F1 of the cited ones; else the share of cited ones that were shown.
    """
    if not cited:
        return 0.0
    right = [identity for identity in cited if identity in found and (wanted is None or identity in wanted)]
    precision = len(right) / len(cited)
    if wanted is None:
        return precision
    recall = len(right) / len(wanted) if wanted else 0.0
    return 2 * precision * recall / (precision + recall) if right else 0.0


def _wanted(row: Mapping[str, Any], column: str) -> frozenset[str] | None:
    if not column:
        return None
    value = row.get(column)
    if isinstance(value, str | int):
        return frozenset({str(value)})
    return frozenset(map(str, value)) if isinstance(value, list | tuple) else None


def _plain(text: str) -> str:
    """Letters and digits in lower case, with single spaces; apostrophes of any kind are left out."""
    text = re.sub("['\u2018\u2019\u02bc`]", "", text.lower())
    return " ".join(re.findall(r"\w+", text))
