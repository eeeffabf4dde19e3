"""What several guard models decide together: how many of them must agree, and when a failed one does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serving_bridge.safety.decisions import Opinion, Verdict
from serving_bridge.settings import SafetySettings


def voted(opinions: Sequence[Opinion], weights: Sequence[float], settings: SafetySettings) -> list[Opinion]:
    """The opinions after the vote: too few votes to block only flag.

    A guard that failed stays an error where its vote could have blocked the text; else it flags.

    Args:
      weights: of each opinion's guard, above 0.
    """
    blocking = [opinion.verdict is Verdict.BLOCK for opinion in opinions]
    possible = [is_block or o.verdict is Verdict.ERROR for is_block, o in zip(blocking, opinions, strict=True)]
    if _blocks(blocking, weights, settings):
        return list(opinions)
    softened = {Verdict.BLOCK} if _blocks(possible, weights, settings) else {Verdict.BLOCK, Verdict.ERROR}
    return [replace(o, verdict=Verdict.FLAG) if o.verdict in softened else o for o in opinions]


def _blocks(votes: Sequence[bool], weights: Sequence[float], settings: SafetySettings) -> bool:
    match settings.voting:
        case "count":
            return sum(votes) >= settings.votes
        case "majority":
            return 2 * sum(votes) > len(votes)
        case "weighted":
            given = sum(weight for weight, vote in zip(weights, votes, strict=True) if vote)
            return 2 * given >= sum(weights)
