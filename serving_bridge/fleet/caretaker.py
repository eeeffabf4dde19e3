"""Looks after one replica: starts it, judges it, updates its weights, and lets it go, one piece of work at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from learner_jax.contracts import WeightManifest
from serving_bridge.fleet.follower import Follower
from serving_bridge.fleet.member import Member
from serving_bridge.fleet.weight_round import RoundOutcome
from serving_bridge.processes import GuardError
from serving_bridge.routing import TAKES_REQUESTS
from serving_bridge.settings import ServingSettings
from serving_bridge.storage import StorageError
from serving_bridge.vllm import ReplicaError, ReplicaStartError
from serving_bridge.weights import WeightStore

_FAILED_ROUNDS_BEFORE_RESTART = 3
_FIRST_RETRY_S, _MAX_RETRY_S = 0.5, 30.0
#: what rollout workers need to see that a replica takes nothing new
NOTICE_S = 1.0


class Caretaker:
    """What the fleet controller does with its replicas; all times are the event loop's.

    Args:
      round_id: names the holder of the replicas' leases.
    """

    def __init__(
        self,
        settings: ServingSettings,
        store: WeightStore,
        follower: Follower,
        *,
        round_id: str,
        log: Callable[..., None],
    ):
        self._settings = settings
        self._store = store
        self._follower = follower
        self._round_id = round_id
        self._log = log

    def tend(self, member: Member, members: Sequence[Member]) -> None:
        """Starts at most one piece of work for a replica.

        Raises:
          ReplicaStartError: a first start failed.
        """
        if member.work is not None:
            if not member.work.done():
                if member.wish == "leave" and member.state in ("starting", "restarting"):
                    member.work.cancel()
                return
            work, member.work, member.in_round, member.leaving = member.work, None, False, False
            if not work.cancelled():
                work.result()
        if member.is_running:
            self._judge(member)
        if member.state != "stopped" and (member.wish == "leave" or (member.wish == "restart" and member.is_running)):
            self._work(member, self._drain(member))
        elif member.must_end:
            self._work(member, self._end(member))
        elif member.state in ("stopped", "dead"):
            if member.wish != "leave" and _now() >= member.retry_s:
                if member.is_spent:  # the window has let one go, and this start takes it
                    member.budget.spend(_now())
                self._work(member, self._start(member))
        else:
            self._update_if_due(member, members)

    def _work(self, member: Member, work: Coroutine[Any, Any, None]) -> None:
        member.work = asyncio.create_task(work, name=member.name)

    def _judge(self, member: Member) -> None:
        """Moves a running replica on by what is known of its process, its health and its requests."""
        verdict = member.health.judge(_now(), in_round=member.in_round)
        failed = member.health.failed_requests()
        if (status := member.server.exit_status()) is not None:
            self._lose(member, f"its process ended with status {status}")
        elif verdict.dead:
            self._lose(member, verdict.dead)
        elif failed and member.state in TAKES_REQUESTS and _now() >= member.retry_s:
            member.health.forget_requests()
            member.proof_wanted = True
            if member.state == "healthy":
                member.happens("suspected", failed)
        elif verdict.suspect and member.state == "healthy":
            member.happens("suspected", verdict.suspect)
        elif not verdict.suspect and member.state == "suspect" and not member.proof_wanted:
            member.happens("recovered")

    async def check_name(self, member: Member) -> None:
        """Has weights proven again that carry another version's name than they were given.

        A replica refuses late requests of the rounds before (`access.Fence`). A name that differs all the same is a
        fault of the replica, and answers under it would be of no version that the learner knows.
        """
        expected = member.version
        if member.state not in TAKES_REQUESTS or member.in_round:
            return
        try:
            async with asyncio.timeout(self._settings.hang_s / 4):
                name = await member.server.client.weight_version()
        except (ReplicaError, TimeoutError):
            return  # that is for the health checks to see
        if name == expected or member.in_round or member.version != expected or member.state not in TAKES_REQUESTS:
            return
        member.proof_wanted = True
        if member.state == "healthy":
            member.happens("suspected", f"its weights are named {name}, expected version {expected}")

    def _lose(self, member: Member, reason: str) -> None:
        """The replica is dead; says when it is started again."""
        now = _now()
        member.happens("lost", reason)
        member.proof_wanted, member.failed_rounds = False, 0
        pause_s = member.budget.spend(now)
        member.is_spent = pause_s is None
        if pause_s is None:
            pause_s = member.budget.next_s(now)
            limit, window_s = self._settings.max_restarts, self._settings.restart_window_s
            member.reason += f"; restarted {limit} times within {window_s:g} s already (serving.max_restarts)"
        member.retry_s, member.must_end = now + pause_s, True
        self._log("replica_lost", replica=member.name, reason=member.reason, restart_in_s=pause_s)

    async def _end(self, member: Member) -> None:
        """Ends what is left of a dead replica, at once: it may hang, and hold what the next one needs."""
        try:
            await member.server.kill()
        except GuardError as error:
            self._log("replica_failed", replica=member.name, error=str(error))
            await asyncio.sleep(_MAX_RETRY_S)
            return
        member.must_end = False

    async def _start(self, member: Member) -> None:
        again = member.state == "dead"
        member.happens("start", member.reason)
        member.wish = "serve" if member.wish == "restart" else member.wish
        member.damaged.clear()
        if again:
            self._log("replica_restart", replica=member.name, reason=member.reason)
        started = _now()
        try:
            await member.server.start()
        except ReplicaStartError as error:
            if member.must_start:
                raise
            self._log("replica_failed", replica=member.name, error=str(error))
            self._lose(member, str(error))
            return
        member.must_start, member.is_spent, member.retry_s = False, False, float("-inf")
        member.happens("started")
        member.health.began(_now())
        self._log("replica_started", replica=member.name, seconds=_now() - started)

    def _update_if_due(self, member: Member, members: Sequence[Member]) -> None:
        most = self._settings.updates_at_once or len(members)
        if sum(other.in_round for other in members) >= most or _now() < member.retry_s:
            return
        manifest = self._follower.due(member, members)
        if manifest is not None:
            member.leaving = self._follower.goes_gently(member, members)
            self._begin_round(member, manifest)
        elif member.proof_wanted and member.manifest is not None:
            self._begin_round(member, member.manifest)

    def _begin_round(self, member: Member, manifest: WeightManifest) -> None:
        member.in_round = True
        self._work(member, self._update(member, manifest))

    async def _update(self, member: Member, manifest: WeightManifest) -> None:
        if member.leaving:  # nobody's answer is to be of two arms
            await asyncio.sleep(NOTICE_S)
            await member.server.drain()
        try:
            outcome = await member.server.update(self._store, manifest, round_id=self._round_id)
        except ReplicaError as error:
            outcome = RoundOutcome(status="unfit", version=manifest.version, error=str(error))
        self._log_round(member, manifest, outcome)
        member.health.round_ended(_now(), sampled=outcome.status == "updated")
        if outcome.status == "updated":
            member.version, member.step, member.manifest = manifest.version, manifest.step, manifest
            member.happens("proven")
            if member.proof_wanted:  # requests that go on failing do not make it pause all the time
                member.proofs += 1
                member.retry_s = _now() + min(_FIRST_RETRY_S * 2**member.proofs, _MAX_RETRY_S)
            member.proof_wanted, member.failed_rounds = False, 0
            return
        if outcome.store_damaged:
            is_wanted = await self._ask_for_anchor(member, manifest.version, outcome.error or "")
            if is_wanted and outcome.status == "rejected":
                return  # it serves on; the next round comes with another form of the version
        member.failed_rounds += 1
        member.retry_s = _now() + min(_FIRST_RETRY_S * 2**member.failed_rounds, _MAX_RETRY_S)
        if outcome.status == "rejected" and not member.proof_wanted:
            return  # it still serves its old version, as well as before
        if outcome.status == "unfit":
            member.happens("refuted", outcome.error or "")
        if member.failed_rounds >= _FAILED_ROUNDS_BEFORE_RESTART:
            self._lose(member, f"{member.failed_rounds} weight rounds in a row failed: {outcome.error}")

    async def _ask_for_anchor(self, member: Member, version: int, reason: str) -> bool:
        """Has a version stored whole that a replica can't use; False where that can't be asked for now."""
        member.damaged.add(version)
        try:
            return await self._follower.want_whole(version, reason)
        except StorageError as error:  # asked again with the next round
            member.damaged.discard(version)
            self._log("files_failed", what="request for a whole version", error=str(error))
            return False

    async def _drain(self, member: Member) -> None:
        """Lets a replica finish what it has, then ends its process."""
        was_in_use, was_running = member.state in TAKES_REQUESTS, member.is_running
        member.happens("drain", "restart" if member.wish == "restart" else "leaves")
        if was_in_use:
            await asyncio.sleep(NOTICE_S)
        if was_running and await member.server.drain():
            await member.server.stop()
        else:
            await member.server.kill()
        member.happens("ended")
        member.must_end, member.retry_s = False, float("-inf")

    def _log_round(self, member: Member, manifest: WeightManifest, outcome: RoundOutcome) -> None:
        self._log(
            "round",
            replica=member.name,
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


def _now() -> float:
    return asyncio.get_running_loop().time()
