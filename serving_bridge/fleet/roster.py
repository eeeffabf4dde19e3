"""The fleet's rows in the replica registry: what rollout workers learn of its replicas, and report of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serving_bridge.fleet.member import Member, Row
from serving_bridge.routing import ReplicaRegistry

_HEARTBEAT_S = 5.0


class Roster:
    """One fleet's rows, and only those are written or removed.

    Args:
      fleet: name of the fleet.
      run_blocking: runs file work off the event loop.
    """

    def __init__(
        self,
        registry: ReplicaRegistry,
        fleet: str,
        *,
        run_blocking: Callable[..., Awaitable[Any]],
        log: Callable[..., None],
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._run_blocking = run_blocking
        self._log = log
        #: what the registry was told last of each replica, and when
        self._reported: dict[str, tuple[Row, float]] = {}

    async def forget_earlier(self) -> None:
        """Removes the replicas of a controller of this name that died."""
        for row in await self._run_blocking(self._registry.replicas):
            if row.fleet == self._fleet:
                await self._run_blocking(self._registry.remove, row.name)

    async def report(self, members: Sequence[Member]) -> None:
        """Writes a replica's row whenever something changed, and now and then as a heartbeat; removes those gone."""
        for member in list(members):
            row = member.row()
            before, at_s = self._reported.get(member.name, (None, float("-inf")))
            if row == before and _now() - at_s < _HEARTBEAT_S:
                continue
            at_s = _now()
            await self._run_blocking(lambda row=row: self._registry.report(fleet=self._fleet, **row._asdict()))
            self._reported[member.name] = row, at_s
            if row != before:
                self._log(
                    "replica", replica=member.name, state=row.state, version=row.version, arm=row.arm, reason=row.reason
                )
        for name in self._reported.keys() - {member.name for member in members}:
            await self._run_blocking(self._registry.remove, name)
            del self._reported[name]
            self._log("replica", replica=name, state="gone", version=-1, reason="")

    async def count_requests(self, members: Sequence[Member]) -> None:
        """Hands each replica's health what the workers counted of its requests."""
        totals = await self._run_blocking(self._registry.all_request_totals)
        for member in members:
            succeeded, failed = totals.get(member.name, (0, 0))
            member.health.count_requests(succeeded, failed, _now())

    def versions_in_use(self, members: Sequence[Member]) -> set[int]:
        """Versions that replicas serve, those of other fleets too."""
        own = {member.version for member in members}
        return own | {row.version for row in self._registry.replicas()}

    async def remove(self, members: Sequence[Member]) -> None:
        """The fleet ends: removes the rows of its replicas."""
        for member in members:
            await self._run_blocking(self._registry.remove, member.name)


def _now() -> float:
    return asyncio.get_running_loop().time()
