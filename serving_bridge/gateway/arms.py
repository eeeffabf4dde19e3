"""Which arm of the serving fleet answers a conversation, and which replicas are of that arm.

A replica is of the arm whose version it serves. Where no replica of an arm is ready, another arm's answers: what an
answer says of its arm goes by the version that sampled it, never by what was planned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serving_bridge.registry import Cohort, Placement, RegistryError
from serving_bridge.routing import LEAVING, ReplicaRow, point_of

STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"
#: of a version that no arm has, or has any more
FORMER = "former"

#: How well a replica fits, lower first; None where it may not be taken.
Rank = Callable[[ReplicaRow], int | None]


@dataclass(frozen=True)
class Split:
    """What the arms serve and how conversations are dealt out; by default everything is `stable`, whatever is served.

    Attributes:
      stable, canary: policy version of each arm; None where there is none.
      previous: version that `stable` was before; it serves users while replicas are on their way to another.
      canary_share: of the conversations, 0 to 1.
      shadow_share: of the requests that `stable` answers: a copy goes to the canary.
      cohort: the only tenants that the canary may answer; None for a split by conversation, whoever asks.
      within: share of the cohort's conversations that go to the canary.
      salt: of the deal; the same conversations stay in the canary while it is the same.
    """

    stable: int | None = None
    canary: int | None = None
    previous: int | None = None
    canary_share: float = 0.0
    shadow_share: float = 0.0
    cohort: Cohort | None = None
    within: float = 1.0
    salt: str = ""


def split_of(placement: Placement) -> Split:
    """What a registry's aliases and traffic split say.

    Raises:
      RegistryError: there is no alias `stable`.
    """
    stable, canary, traffic = placement.stable, placement.canary, placement.traffic
    if stable is None:
        raise RegistryError(
            f"namespace {placement.namespace} has no alias stable, so nothing can be served: move it to an entry "
            f"(tools.registry move)"
        )
    previous = placement.aliases.get(PREVIOUS)
    salt = "" if canary is None else str(canary.number)
    return Split(
        stable=stable.weight_version,
        canary=None if canary is None else canary.weight_version,
        previous=None if previous is None else previous.weight_version,
        canary_share=traffic.canary_share,
        shadow_share=traffic.shadow_share,
        cohort=traffic.cohort(salt),
        within=traffic.within,
        salt=salt,
    )


class Arms:
    """The split that is in force; it changes as a whole.

    A conversation stays in its arm while split and canary stay. When the canary's share grows, conversations only move
    into it; when it shrinks, only out of it.
    """

    def __init__(self, split: Split | None = None) -> None:
        self.split = split or Split()

    def take_over(self, split: Split) -> None:
        """Deals out from now on by another split."""
        self.split = split

    def of(self, conversation: str, tenant: str = "") -> str:
        """The arm that shall answer a conversation."""
        return CANARY if point_of(f"{self.split.salt}\0{conversation}") < self._canary_share(tenant) else STABLE

    def propensity(self, arm: str, tenant: str = "") -> float:
        """The probability with which a conversation of a tenant is dealt to an arm."""
        share = self._canary_share(tenant)
        return share if arm == CANARY else 1.0 - share

    def _canary_share(self, tenant: str) -> float:
        """Of a tenant's conversations."""
        split = self.split
        if split.canary is None or not split.canary_share:
            return 0.0
        if split.cohort is None:
            return split.canary_share
        return split.within if split.cohort.has(tenant) else 0.0

    def is_mirrored(self, response_id: str) -> bool:
        """Whether the canary gets a copy of a request that `stable` answers."""
        split = self.split
        return split.canary is not None and point_of(response_id) < split.shadow_share

    def of_version(self, version: int, wanted: str = STABLE) -> str:
        """The arm whose version this is; of two arms with the same version, the wanted one."""
        split = self.split
        if split.stable is None:
            return STABLE
        versions = {STABLE: split.stable, CANARY: split.canary}
        if versions.get(wanted) == version:
            return wanted
        return next((arm for arm, its in versions.items() if its == version), FORMER)

    def rank(self, arm: str) -> Rank:
        """How replicas fit a request of an arm: its own, then stable's, then the one before, then whatever serves."""
        split = self.split
        own = split.canary if arm == CANARY else split.stable
        if split.stable is None or own is None:
            return lambda row: int(row.state != "healthy")
        order = {split.canary: 3, split.previous: 2, split.stable: 1, own: 0}  # later ones win
        spares = arm == STABLE and split.cohort is not None  # nobody else gets what was tried on some tenants alone

        def of(row: ReplicaRow) -> int | None:
            if spares and order.get(row.version) == 3:
                return None
            return 2 * (5 if row.arm == LEAVING else order.get(row.version, 4)) + (row.state != "healthy")

        return of

    def only_canary(self, row: ReplicaRow) -> int | None:
        """As `rank`, of a request that nothing but the canary may answer."""
        fits = self.split.canary is not None and row.version == self.split.canary and row.arm != LEAVING
        return 0 if fits else None
