"""The fleet controller: keeps replicas running, on the weights that they shall serve, and known to who asks them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from learner_jax.runtime import Waits
from serving_bridge.access import FleetKeys
from serving_bridge.fleet.caretaker import Caretaker
from serving_bridge.fleet.follower import Follower
from serving_bridge.fleet.health import Health
from serving_bridge.fleet.looks import FleetError, Looks
from serving_bridge.fleet.meeting import MeetingPoint
from serving_bridge.fleet.member import Member, Server
from serving_bridge.fleet.orders import FleetStatus, OrderBook
from serving_bridge.fleet.plan import FleetPlan
from serving_bridge.fleet.replica import Replica
from serving_bridge.fleet.roster import Roster
from serving_bridge.fleet.store_follower import StoreFollower
from serving_bridge.processes import RestartBudget
from serving_bridge.routing import KEYS_FOLDER, ReplicaRegistry
from serving_bridge.settings import ServingSettings
from serving_bridge.vllm import http_session
from serving_bridge.weights import WeightStore

Log = Callable[..., None]

_TICK_S = 0.03
_ORDERS_S = 0.25
_REQUESTS_S = 1.0
#: beyond draining, what ending all servers may take
END_S = 20.0


class Fleet:
    """Starts vLLM servers, `settings.replicas` or as many as ordered, and keeps them on the weights of a store.

    A replica takes requests only after a verified weight round, and each time that its process was started anew only
    after another one. `serving_bridge.routing.lifecycle` has the states, `orders` what an operator may order.

    Args:
      model_dir: folder that servers start from; its weights are replaced by the store's before any request.
      keep_versions: versions kept in the store; those that a replica serves are always kept.
      name: of this controller, unique in the registry; its replicas are named after it. The host's name by default.
      keys: of the run, for the tokens of its replicas; by default those beside the registry's rows.
      follower: says which version each replica shall serve; by default the newest one of the store.
      make_replica: (name, port) -> server; a `Replica` by default. Port 0 lets it pick a free one.
      open_session: HTTP session for the replicas that are made by default.
      run_blocking: runs file work, which may be slow, off the event loop.
      clock: seconds since the epoch, for the status file.
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
        name: str = "",
        keys: FleetKeys | None = None,
        model_family: str = "",
        follower: Follower | None = None,
        make_replica: Callable[[str, int], Server] | None = None,
        open_session: Callable[[], AbstractAsyncContextManager[Any]] = http_session,
        run_blocking: Callable[..., Awaitable[Any]] = asyncio.to_thread,
        waits: Waits | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.name = name or socket.gethostname()
        self.members: list[Member] = []
        self._settings = settings
        self._model_dir = model_dir
        self._log_dir = log_dir
        self._should_stop = should_stop
        self._store = store
        self._registry_folder = registry.folder
        self._model_family = model_family
        self._keys = keys or FleetKeys(registry.folder / KEYS_FOLDER)
        self._make_replica = make_replica or self._real_replica
        self._open_session = open_session
        self._run_blocking = run_blocking
        self._waits = waits or Waits()
        self._clock = clock
        self._book = OrderBook(registry.folder, self.name)
        self._plan = FleetPlan(settings)
        self._follower: Follower = follower or StoreFollower(
            store, keep_versions=keep_versions, log=log, run_blocking=run_blocking
        )
        # One id for all rounds: what a controller of this name left unfinished, this one goes on with at once.
        self._caretaker = Caretaker(settings, store, self._follower, round_id=self.name, log=log)
        self._roster = Roster(registry, self.name, run_blocking=run_blocking, log=log)
        self._looks = Looks(limit_s=settings.min_healthy_s, waits=self._waits, log=log)

    async def run(self) -> None:
        """Serves until `should_stop`, then lets answers in flight finish; cancelled or failing, it ends all at once.

        Raises:
          ReplicaStartError: a server could not start the first time.
          FleetError: fewer than `serving.min_healthy` replicas served for `serving.min_healthy_s`, or can any more; or
            the files of store and registry were out of reach for that long.
        """
        async with self._open_session() as session:
            self._session = session
            try:
                await self._begin()
                while not self._should_stop():
                    self._tick()
                    await asyncio.sleep(_TICK_S)
                await self._end_gently()
            finally:
                await self._end_now()

    async def _begin(self) -> None:
        """Forgets the replicas of a controller of this name that died, and takes up the orders that it had."""
        await self._roster.forget_earlier()
        self._plan.begin(await self._run_blocking(self._book.orders))
        for _ in range(self._plan.wanted):
            self._join(must_start=True)
        self._looks.begin("store", self._follower.poll_s, self._follow_store)
        self._looks.begin("registry", _TICK_S, lambda: self._roster.report(self.members))
        self._looks.begin("orders", _ORDERS_S, self._follow_orders)
        self._looks.begin("requests", _REQUESTS_S, lambda: self._roster.count_requests(self.members))
        self._looks.begin("floor", _TICK_S, self._check_floor)

    def _tick(self) -> None:
        """Looks after everything once, without waiting."""
        self._looks.check()
        self._plan.follow(self.members, join=self._join)
        self._follower.arrange(self.members)
        for member in list(self.members):
            self._caretaker.tend(member, self.members)
            if member.wish == "leave" and member.state == "stopped" and member.work is None:
                self._forget(member)

    def _join(self, *, must_start: bool = False) -> None:
        used = {member.index for member in self.members}
        index = next(number for number in range(len(used) + 1) if number not in used)
        server = self._make_replica(f"{self.name}-{index}", self._settings.port + index if self._settings.port else 0)
        budget = RestartBudget(self._settings.max_restarts, self._settings.restart_window_s)
        member = Member(index, server, Health(self._settings, self._now()), budget, must_start=must_start)
        self.members.append(member)
        check_s, look_s = self._settings.health_interval_s, self._settings.hang_s / 8
        self._looks.begin(f"health of {member.name}", check_s, lambda: self._check_health(member))
        self._looks.begin(f"sampling of {member.name}", look_s, lambda: self._check_sampling(member))

    def _real_replica(self, name: str, port: int) -> Server:
        log_path = self._log_dir / f"{name}.log"
        self._keys.make()
        return Replica(
            name,
            self._model_dir,
            self._settings,
            self._session,
            log_path=log_path,
            port=port,
            waits=self._waits,
            keys=self._keys,
            store=self._store,
            model_family=self._model_family,
            point=MeetingPoint(self._registry_folder, name) if self._settings.hosts_per_replica > 1 else None,
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _forget(self, member: Member) -> None:
        self.members.remove(member)
        for what in ("health", "sampling"):
            self._looks.end(f"{what} of {member.name}")

    async def _check_health(self, member: Member) -> None:
        if member.is_running:
            await member.health.check(member.server.client)
        await self._caretaker.check_name(member)

    async def _check_sampling(self, member: Member) -> None:
        if member.is_running and not member.in_round:
            await member.health.check_sampling(member.server.client)

    async def _follow_store(self) -> None:
        await self._follower.look(lambda: self._roster.versions_in_use(self.members))

    async def _follow_orders(self) -> None:
        if self._plan.take(await self._run_blocking(self._book.orders), self.members) and self._plan.refused:
            await self._run_blocking(self._book.settle, self._plan.order_id, self._plan.wanted)
        status = FleetStatus(
            fleet=self.name,
            wanted=self._plan.wanted,
            order_id=self._plan.order_id,
            refused=self._plan.refused,
            doing=self._plan.doing(self.members),
            heartbeat_s=self._clock(),
        )
        await self._run_blocking(self._book.report, status)

    async def _check_floor(self) -> None:
        """Ends the fleet when too few replicas serve for too long, once there is something to serve."""
        least = self._settings.min_healthy
        if not self._follower.has_version or self._num_healthy() >= least:
            return
        with self._waits.waiting(
            f"{least} healthy replicas",
            on=f"replicas of fleet {self.name}",
            limit_s=self._settings.min_healthy_s,
            setting="serving.min_healthy_s",
            error=FleetError,
        ) as wait:
            while self._num_healthy() < least:
                wait.hint("; ".join(member.describe() for member in self.members))
                if sum(member.has_hope() for member in self.members) < least:
                    raise wait.error()
                await wait.pause(_TICK_S)

    def _num_healthy(self) -> int:
        return sum(member.state == "healthy" for member in self.members)

    async def _end_gently(self) -> None:
        """Takes all replicas out of use, lets them finish what they have, bounded, and ends them."""
        self._looks.end_all(but=["registry"])
        for member in self.members:
            member.wish = "leave"
            if member.work is not None and member.state != "draining":
                member.work.cancel()
        with self._waits.waiting(
            "replicas to finish their answers and end",
            on=f"replicas of fleet {self.name}",
            limit_s=self._settings.drain_timeout_s + END_S,
        ) as wait:
            while wait.remaining_s and any(m.state != "stopped" or m.work is not None for m in self.members):
                for member in self.members:
                    self._caretaker.tend(member, self.members)
                await wait.pause(_TICK_S)

    async def _end_now(self) -> None:
        """Ends what is left of all replicas, and takes them from the registry."""
        looks = self._looks.end_all()
        # First the servers: work on them then ends by itself, instead of taking its time to end in order.
        killed = await asyncio.gather(*(member.server.kill() for member in self.members), return_exceptions=True)
        tasks = [*looks, *(member.work for member in self.members if member.work is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._roster.remove(self.members)
        await self._run_blocking(self._book.clear_status)
        for failure in killed:
            if isinstance(failure, BaseException):
                raise failure
