"""What tells a fleet which version each of its replicas shall serve: the door for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from learner_jax.contracts import WeightManifest
from serving_bridge.fleet.member import Member


class Follower(Protocol):
    """Knows what is to be served; `StoreFollower` and `AliasFollower` are the two.

    Attributes:
      poll_s: seconds between looks.
    """

    poll_s: float

    @property
    def has_version(self) -> bool:
        """Whether there is anything to serve."""

    async def look(self, in_use: Callable[[], Collection[int]]) -> None:
        """Finds out what is to be served now.

        Args:
          in_use: versions that replicas serve.

        Raises:
          OSError: files are out of reach.
        """

    def arrange(self, members: Sequence[Member]) -> None:
        """Gives replicas their arms, where there are some."""

    def due(self, member: Member, members: Sequence[Member]) -> WeightManifest | None:
        """The version to bring a replica to now; None while it serves the right one, or others go first."""

    def goes_gently(self, member: Member, members: Sequence[Member]) -> bool:
        """Whether a replica ends the answers that it has before it is brought to another version."""

    async def want_whole(self, version: int, reason: str) -> bool:
        """Asks for a whole copy of a version that a replica can't use; False where there is nobody to ask."""
