"""Which version of the weight store a replica shall load next, and what to do about versions that are damaged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from learner_jax.contracts import ContractError, WeightManifest
from serving_bridge.fleet.member import Member
from serving_bridge.storage import StorageError
from serving_bridge.weights import StoreError, WeightStore


class StoreFollower:
    """Knows the newest version that can be read, and deletes those that nobody needs; implements `Follower`.

    Args:
      keep_versions: versions kept in the store; those in use are always kept.
      run_blocking: runs file work off the event loop.
    """

    def __init__(
        self,
        store: WeightStore,
        *,
        keep_versions: int,
        log: Callable[..., None],
        run_blocking: Callable[..., Awaitable[Any]],
    ):
        self.poll_s = store.poll_s
        self.newest: WeightManifest | None = None
        self._store = store
        self._keep_versions = keep_versions
        self._log = log
        self._run_blocking = run_blocking
        self._unreadable: int | None = None

    @property
    def has_version(self) -> bool:
        return self.newest is not None

    async def look(self, in_use: Callable[[], Collection[int]]) -> None:
        """Finds the newest version; after a new one, deletes the old ones that are not `in_use`."""
        versions = await self._run_blocking(self._store.versions)
        if not versions or (self.newest is not None and versions[-1] == self.newest.version):
            return
        try:
            self.newest = await self._run_blocking(self._store.best_manifest, versions[-1])
        except (StoreError, ContractError) as error:
            if self._unreadable != versions[-1]:
                await self.want_whole(versions[-1], str(error))
                self._unreadable = versions[-1]
            return
        await self._run_blocking(lambda: self._store.collect(self._keep_versions, in_use()))

    def target(self, member: Member) -> WeightManifest | None:
        """The version to bring a replica to: the newest, or for one that serves none the newest that it can use.

        A version that the store holds damaged is tried again once it is there whole.
        """
        has_anchor = self._store.has_anchor
        member.damaged = {version for version in member.damaged if not has_anchor(version, recent=True)}
        newest = self.newest
        if newest is None or newest.version not in member.damaged:
            return newest
        versions = self._store.versions(recent=True)
        older = [v for v in versions if v not in member.damaged and v < newest.version]
        if not older or member.version >= 0:
            return None
        try:
            return self._store.best_manifest(older[-1])
        except StorageError:
            return None  # looked at again

    def arrange(self, members: Sequence[Member]) -> None:
        """All replicas serve the same."""

    def due(self, member: Member, members: Sequence[Member]) -> WeightManifest | None:
        """The newest version, for a replica that serves an older one or none."""
        manifest = self.target(member)
        return manifest if manifest is not None and member.version < manifest.version else None

    def goes_gently(self, member: Member, members: Sequence[Member]) -> bool:
        """Answers live through a swap: their tokens say of which version they are."""
        return False

    async def want_whole(self, version: int, reason: str) -> bool:
        """Asks the learner to store a version once more, whole."""
        self._log("version_damaged", version=version, error=reason)
        await self._run_blocking(self._store.want_anchor, version, reason)
        return True
