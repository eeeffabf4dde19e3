"""Users' reactions to answers as observations: each read once, also where a reader is killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from serving_bridge.canary.errors import CanaryError
from serving_bridge.canary.looks import ARMS
from serving_bridge.canary.observations import Observation, ObservationLog, OfArm


class Reacted(OfArm, Protocol):
    """A request that was answered, and what its user did."""

    @property
    def thumbs_down(self) -> bool: ...
    @property
    def regenerated(self) -> bool: ...


#: (number to go on after) -> (what came, number to go on after next time)
Read = Callable[[int], tuple[Sequence[Reacted], int]]


def observe_reactions(log: ObservationLog, namespace: str, source: str, read: Read, *, now_s: float) -> int:
    """Writes `thumbs_down` and `regenerated`, 0 or 1, of every request that `read` gives, and how far it was read.

    Both are one transaction: a reader that is killed, or reads beside another, counts nothing twice.

    Args:
      source: names what is read; a source has a place of its own.

    Returns:
      observations that were written; 0 where another reader was first.
    """
    before = log.mark(source)
    found, until = read(before)
    if until == before:
        return 0
    observations = [one for reacted in found if (one := _observation(namespace, reacted, now_s)) is not None]
    return len(observations) if log.add_marked(observations, source, before, until) else 0


def _observation(namespace: str, seen: Reacted, now_s: float) -> Observation | None:
    """None for an answer of no arm, or of a tenant whose name can't be kept."""
    if seen.arm not in ARMS:
        return None
    measures = {"thumbs_down": float(seen.thumbs_down), "regenerated": float(seen.regenerated)}
    try:
        return Observation(
            namespace, "feedback", seen.arm, seen.version, seen.tenant, seen.conversation, measures, at_s=now_s
        )
    except CanaryError:
        return None
