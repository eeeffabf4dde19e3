"""Which versions a registry's aliases name, and which replica shall serve which: the follower of a users' fleet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learner_jax.contracts import TensorEntry, WeightManifest, hf_shapes, quoted, read_model_config
from learner_jax.runtime import WeirError
from serving_bridge.database import DatabaseError
from serving_bridge.fleet.arm_plan import Placeable, arm_sizes, assigned
from serving_bridge.fleet.member import Member
from serving_bridge.registry import (
    CANARY,
    STABLE,
    Entry,
    Placed,
    Placement,
    Registry,
    RegistryError,
    model_files,
    tokenizer_sha256,
)
from serving_bridge.routing import TAKES_REQUESTS

_POLL_S = 0.5
_ARMS = (STABLE, CANARY)


@dataclass(frozen=True)
class Served:
    """What a fleet's servers can be brought to.

    Attributes:
      shapes: HF name -> shape of each tensor.
      dtype: by numpy's name.
      tokenizer: sha256 of tokenizer.json, "" for none.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    tokenizer: str

    def problem(self, entry: Entry, tensors: Sequence[TensorEntry]) -> str:
        """Why an entry can't be served by these servers; "" where it can."""
        if entry.tokenizer != self.tokenizer:
            return (
                f"entry {entry.id} has tokenizer {entry.tokenizer[:12] or 'none'}, and this fleet's model folder "
                f"{self.tokenizer[:12] or 'none'}: serve it by a fleet that starts from its own folder"
            )
        found = {tensor.name: tuple(tensor.shape) for tensor in tensors}
        differing = sorted(name for name in {*found, *self.shapes} if found.get(name) != self.shapes.get(name))
        if differing:
            name = differing[0]
            return (
                f"entry {entry.id} has another shape than this fleet's model folder: {len(differing)} tensors, e.g. "
                f"{name} is {found.get(name, 'missing')}, expected {self.shapes.get(name, 'none')}"
            )
        if dtypes := sorted({tensor.dtype for tensor in tensors} - {self.dtype}):
            return f"entry {entry.id} is of {dtypes[0]}, and this fleet serves {self.dtype} (serving.dtype)"
        return ""


def served_by(model_dir: Any, dtype: str, *, family: str = "") -> Served:
    """What servers that start from a model folder can serve."""
    shapes = hf_shapes(read_model_config(model_dir, family=family))
    return Served(shapes, dtype, tokenizer_sha256(model_files(model_dir)))


class AliasFollower:
    """Follows the aliases `stable` and `canary` of a namespace, and deals the replicas out by its traffic split.

    While the registry can't be read, what was read last is served on. An entry that can't be served, because it is
    damaged or does not fit, is told in the log, and its arm goes on with what it served.

    Args:
      run_blocking: runs file work off the event loop.

    Attributes:
      placement: that was read last.
    """

    def __init__(
        self,
        registry: Registry,
        namespace: str,
        served: Served,
        *,
        log: Callable[..., None],
        run_blocking: Callable[..., Awaitable[Any]],
    ) -> None:
        self.poll_s = _POLL_S
        self.placement: Placement | None = None
        self._registry, self._namespace, self._served = registry, namespace, served
        self._log, self._run_blocking = log, run_blocking
        self._manifests: dict[str, WeightManifest] = {}
        self._refused: dict[str, str] = {}
        self._unread = ""

    def require_stable(self) -> None:
        """Raises `RegistryError` unless there is an alias `stable` whose entry these servers can serve."""
        stable = self._registry.placement(self._namespace).stable
        if stable is None:
            raise RegistryError(
                f"namespace {self._namespace} has no alias stable, so there is nothing to serve: move it to an entry "
                f"(tools.registry move)"
            )
        self._read(stable.number)

    @property
    def has_version(self) -> bool:
        return STABLE in self._manifests

    async def look(self, in_use: Callable[[], Collection[int]]) -> None:
        """Reads aliases and split, and the manifests of versions that are new."""
        try:
            placement: Placement = await self._run_blocking(self._registry.placement, self._namespace)
        except (DatabaseError, RegistryError) as error:
            if self._unread != (said := str(error)):
                self._log("aliases_unread", error=said)
            self._unread = said
            return
        self._unread = ""
        for arm in _ARMS:
            await self._follow(arm, placement.aliases.get(arm))
        if placement != self.placement:
            self._log(
                "aliases",
                **{arm: None if (at := placement.aliases.get(arm)) is None else at.weight_version for arm in _ARMS},
                canary_share=placement.traffic.canary_share,
                shadow_share=placement.traffic.shadow_share,
            )
        self.placement = placement

    async def _follow(self, arm: str, placed: Placed | None) -> None:
        if placed is None:
            self._refused.pop(arm, None)
            if arm == CANARY:  # users are never left without what `stable` was last
                self._manifests.pop(arm, None)
            return
        known = self._manifests.get(arm)
        if known is not None and known.content_sha256 == placed.content and known.version == placed.weight_version:
            self._refused.pop(arm, None)
            return
        try:
            manifest = await self._run_blocking(self._read, placed.number)
        except WeirError as error:  # tried again with the next look
            if self._refused.get(arm) != (said := quoted(str(error), 1000)):
                self._log("arm_refused", arm=arm, version=placed.weight_version, error=said)
            self._refused[arm] = said
            return
        self._refused.pop(arm, None)
        self._manifests[arm] = manifest

    def _read(self, number: int) -> WeightManifest:
        standing = self._registry.index.standing(self._namespace, number)
        manifest = self._registry.manifest(standing)
        if problem := self._served.problem(standing.entry, manifest.tensors):
            raise RegistryError(problem)
        return manifest

    def arrange(self, members: Sequence[Member]) -> None:
        """Gives every replica an arm: by traffic, and so that few have to be swapped."""
        if self.placement is None:
            return
        staying = [member for member in members if member.wish != "leave"]
        sizes = arm_sizes(len(staying), self.placement.traffic, has_canary=CANARY in self._manifests)
        versions = {arm: manifest.version for arm, manifest in self._manifests.items()}
        arms = assigned([Placeable(m.name, m.version, m.arm) for m in staying], sizes, versions)
        for member in staying:
            member.arm = arms[member.name]

    def due(self, member: Member, members: Sequence[Member]) -> WeightManifest | None:
        """One replica that serves is swapped at a time; those that serve nothing need not wait."""
        manifest = self._manifests.get(member.arm)
        if manifest is None or member.version == manifest.version:
            return None
        if member.version >= 0 and any(other.leaving for other in members):
            return None
        return manifest

    def goes_gently(self, member: Member, members: Sequence[Member]) -> bool:
        """Where another replica can take its requests."""
        return member.version >= 0 and any(
            other is not member and other.state in TAKES_REQUESTS and not other.leaving for other in members
        )

    async def want_whole(self, version: int, reason: str) -> bool:
        """A registry's weights are whole already; nobody writes them again by himself."""
        self._log("version_damaged", version=version, error=reason)
        return False
