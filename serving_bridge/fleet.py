"""The fleet controller: keeps replicas running, on the newest verified weights, and known to the rollout workers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from learner_jax.contracts import ContractError, WeightManifest
from serving_bridge.config import ServingSettings
from serving_bridge.registry import ReplicaRegistry
from serving_bridge.replica import Replica, ReplicaStartError
from serving_bridge.vllm_client import ReplicaError
from serving_bridge.weight_files import StoreError
from serving_bridge.weight_round import RoundOutcome
from serving_bridge.weight_store import WeightStore

Log = Callable[..., None]

_TICK_S = 0.03
_HEARTBEAT_S = 5.0
_FAILED_ROUNDS_BEFORE_RESTART = 3
_FIRST_RETRY_S, _MAX_RETRY_S = 0.5, 30.0


class FleetError(RuntimeError):
    """The fleet can't serve any more; says why."""


@dataclass
class _Member:
    """A replica and what the controller knows of it."""

    replica: Replica
    version: int = -1
    step: int = -1
    restarts: int = 0
    failed_rounds: int = 0
    retry_s: float = float("-inf")
    reported: tuple[str, int] = ("", -1)
    reported_s: float = field(default=float("-inf"))
    work: asyncio.Task[None] | None = None
    in_round: bool = False
    #: versions that the store holds in a form that this replica can't use
    damaged: set[int] = field(default_factory=set)


class Fleet:
    """Starts `settings.replicas` vLLM servers and follows the weight store with them until stopped.

    A replica takes requests only in state "ready", which it reaches through a verified weight round; one that
    restarted is stale until then.

    Args:
      model_dir: folder that servers start from; its weights are replaced by the store's before any request.
      keep_versions: versions kept in the store; those that a replica serves are always kept.
    """

    def __init__(
        self,
        settings: ServingSettings,
        *,
        model_dir: Path,
        store: WeightStore,
        registry: ReplicaRegistry,
        log_dir: Path,
        keep_versions: int,
        log: Log,
        should_stop: Callable[[], bool],
    ):
        self._settings = settings
        self._model_dir = model_dir
        self._store = store
        self._registry = registry
        self._log_dir = log_dir
        self._keep_versions = keep_versions
        self._log = log
        self._should_stop = should_stop
        self._newest: WeightManifest | None = None
        self._unreadable: int | None = None

    async def run(self) -> None:
        """Serves until `should_stop`.

        Raises:
          ReplicaStartError: a server could not start the first time.
          FleetError: a replica crashed more than `serving.max_restarts` times.
        """
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            members = [self._member(index, session) for index in range(self._settings.replicas)]
            try:
                await self._start_all(members)
                while not self._should_stop():
                    self._follow_store(members)
                    for member in members:
                        self._tend(member, members)
                        self._report(member)
                    await asyncio.sleep(_TICK_S)
            finally:
                await self._stop(members)

    def _member(self, index: int, session: aiohttp.ClientSession) -> _Member:
        name = f"{socket.gethostname()}-{index}"
        port = self._settings.port + index if self._settings.port else 0
        log_path = self._log_dir / f"{name}.log"
        return _Member(Replica(name, self._model_dir, self._settings, session, log_path=log_path, port=port))

    async def _start_all(self, members: list[_Member]) -> None:
        """Starts all servers side by side; a stop that is asked for meanwhile ends them at once."""
        starting = asyncio.gather(*(self._start(member) for member in members))
        while not starting.done():
            if self._should_stop():
                starting.cancel()
            await asyncio.wait([starting], timeout=_TICK_S)
        if not starting.cancelled():
            starting.result()

    async def _start(self, member: _Member) -> None:
        started = time.monotonic()
        await member.replica.start()
        self._log("replica_started", replica=member.replica.name, seconds=time.monotonic() - started)

    def _follow_store(self, members: list[_Member]) -> None:
        versions = self._store.versions()
        if not versions or (self._newest is not None and versions[-1] == self._newest.version):
            return
        try:
            self._newest = self._store.best_manifest(versions[-1])
        except (StoreError, ContractError) as error:
            if self._unreadable != versions[-1]:
                self._unreadable = versions[-1]
                self._want_anchor(versions[-1], str(error))
            return
        in_use = {member.version for member in members}
        self._store.collect(self._keep_versions, in_use)

    def _tend(self, member: _Member, members: list[_Member]) -> None:
        """Starts at most one piece of work for a replica: a restart, or a round."""
        if member.work is not None:
            if not member.work.done():
                return
            member.work.result()
            member.work, member.in_round = None, False
        if member.replica.exit_status() is not None:
            member.work = asyncio.create_task(self._restart(member))
            return
        most = self._settings.updates_at_once or len(members)
        if sum(other.in_round for other in members) >= most or time.monotonic() < member.retry_s:
            return
        manifest = self._target(member)
        if manifest is not None and member.version < manifest.version:
            member.in_round = True
            member.work = asyncio.create_task(self._update(member, manifest))

    def _target(self, member: _Member) -> WeightManifest | None:
        """The version to bring a replica to: the newest, or for one that serves none the newest that it can use.

        A version that the store holds damaged is tried again once it is there whole.
        """
        member.damaged = {version for version in member.damaged if not self._store.has_anchor(version)}
        newest = self._newest
        if newest is None or newest.version not in member.damaged:
            return newest
        older = [v for v in self._store.versions() if v not in member.damaged and v < newest.version]
        return self._store.best_manifest(older[-1]) if older and member.version < 0 else None

    async def _update(self, member: _Member, manifest: WeightManifest) -> None:
        try:
            outcome = await member.replica.update(self._store, manifest)
        except ReplicaError as error:
            outcome = RoundOutcome(status="unfit", version=manifest.version, error=str(error))
        self._log_round(member, manifest, outcome)
        if outcome.status == "updated":
            member.version, member.step, member.failed_rounds = manifest.version, manifest.step, 0
            self._report(member)
            return
        if outcome.store_damaged:
            self._want_anchor(manifest.version, outcome.error or "")
            member.damaged.add(manifest.version)
            if outcome.status == "rejected":
                return  # it serves on; the next round comes with another form of the version
        member.failed_rounds += 1
        member.retry_s = time.monotonic() + min(_FIRST_RETRY_S * 2**member.failed_rounds, _MAX_RETRY_S)
        if outcome.status == "rejected":
            return  # it still serves its old version, as well as before
        member.version, member.step = -1, -1
        if member.failed_rounds >= _FAILED_ROUNDS_BEFORE_RESTART and member.replica.exit_status() is None:
            await member.replica.kill()

    def _want_anchor(self, version: int, reason: str) -> None:
        self._log("version_damaged", version=version, error=reason)
        self._store.want_anchor(version, reason)

    async def _restart(self, member: _Member) -> None:
        """Brings a dead server back; it is stale until its first verified round."""
        member.restarts += 1
        member.version, member.step, member.failed_rounds = -1, -1, 0
        member.damaged.clear()
        name, limit = member.replica.name, self._settings.max_restarts
        if member.restarts > limit:
            raise FleetError(
                f"{name} ended {member.restarts} times, more than serving.max_restarts = {limit}; see "
                f"{member.replica.log_path}"
            )
        self._log("replica_restart", replica=name, restarts=member.restarts)
        try:
            await self._start(member)
        except ReplicaStartError as error:
            self._log("replica_failed", replica=name, error=str(error))

    def _report(self, member: _Member) -> None:
        """Writes the replica's row when something changed, and now and then as a heartbeat."""
        replica = member.replica
        # A round keeps the replica open to requests: they queue through its short pause and go on.
        state = "ready" if replica.state == "updating" and member.version >= 0 else replica.state
        now = time.monotonic()
        if (state, member.version) == member.reported and now - member.reported_s < _HEARTBEAT_S:
            return
        if (state, member.version) != member.reported:
            self._log("replica", replica=replica.name, state=state, version=member.version)
        member.reported, member.reported_s = (state, member.version), now
        self._registry.report(replica.name, url=replica.base_url, state=state, version=member.version, step=member.step)

    def _log_round(self, member: _Member, manifest: WeightManifest, outcome: RoundOutcome) -> None:
        self._log(
            "round",
            replica=member.replica.name,
            version=manifest.version,
            step=manifest.step,
            outcome=outcome.status,
            stage_s=outcome.stage_s,
            pause_s=outcome.pause_s,
            probe_s=outcome.probe_s,
            running_at_pause=outcome.num_running,
            probe_max_abs=outcome.probe_max_abs,
            error=outcome.error,
        )

    async def _stop(self, members: list[_Member]) -> None:
        for member in members:
            self._registry.remove(member.replica.name)
            if member.work is not None:
                member.work.cancel()
        await asyncio.gather(*(m.work for m in members if m.work is not None), return_exceptions=True)
        await asyncio.gather(*(member.replica.stop() for member in members))
