"""Which replica of a fleet serves which arm: by the arms' traffic, with few weight swaps; decisions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving_bridge.registry import CANARY, STABLE, TrafficSplit


@dataclass(frozen=True)
class Placeable:
    """A replica that can be given an arm.

    Attributes:
      version: that it serves, -1 for none.
      arm: that it has; "" for none yet.
    """

    name: str
    version: int
    arm: str


def arm_sizes(num_replicas: int, split: TrafficSplit, *, has_canary: bool) -> dict[str, int]:
    """Replicas of each arm, by what the arms have to sample: users' requests, and copies as much as these.

    Each arm with traffic gets a replica, and `stable` keeps one while there is a canary, so that going back swaps
    nothing. With one replica the canary gets none, whatever its share: stable answers in its place.
    """
    shadow = split.shadow_share * (1 - split.canary_share)
    load = split.canary_share + shadow
    if not has_canary or not load or num_replicas < 2:
        return {STABLE: num_replicas, CANARY: 0}
    canary = round(num_replicas * load / (1 + shadow))
    canary = min(max(1, canary), num_replicas - 1)
    return {STABLE: num_replicas - canary, CANARY: canary}


def assigned(
    replicas: Sequence[Placeable], sizes: Mapping[str, int], versions: Mapping[str, int | None]
) -> dict[str, str]:
    """The arm of each replica, by name.

    Who serves an arm's version already gets that arm, then who has it already, then who serves nothing.

    Args:
      versions: of the arms.
    """

    def cost(replica: Placeable) -> tuple[bool, bool, bool, bool]:
        """How little a replica suits the canary."""
        serves_stable = replica.version == versions.get(STABLE) and replica.version != versions.get(CANARY)
        serves_canary = replica.version == versions.get(CANARY)
        return not serves_canary, replica.arm != CANARY, serves_stable, replica.version >= 0

    places = {replica.name: place for place, replica in enumerate(replicas)}
    ordered = sorted(replicas, key=lambda replica: (cost(replica), -places[replica.name]))
    of_canary = {replica.name for replica in ordered[: sizes[CANARY]]}
    return {replica.name: CANARY if replica.name in of_canary else STABLE for replica in replicas}
