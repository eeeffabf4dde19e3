"""One weight round on one replica: stage while it serves, swap and prove by golden prompts inside one short pause."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from learner_jax.contracts import WeightManifest, manifest_sha256
from learner_jax.runtime import Wait, Waits
from serving_bridge.fleet.golden_probe import largest_difference, probe_tolerance
from serving_bridge.settings import ServingSettings
from serving_bridge.vllm import Failed, ReplicaError, RoundControl, Superseded, Swapped, VllmClient, WorkerStatus

T = TypeVar("T")
RoundStatus = Literal["updated", "rejected", "unfit"]

_MIN_POLL_S, _MAX_POLL_S = 0.005, 0.25
_RESUME_TRIES = 3
#: what a lease outlasts the longest pause by, so that no other round gets between
_LEASE_MARGIN_S = 10.0


@dataclass(frozen=True)
class RoundOutcome:
    """What happened to one replica in one round.

    Attributes:
      status: "updated": serves the new version, proven; "rejected": serves what it served before, nothing was touched;
        "unfit": out of reach, or paused with weights that nothing proves (it samples nothing then): a later round that
        succeeds opens it again, else restart it.
      stage_s: reading and checking, while serving.
      pause_s: time without sampling, the probe included.
      probe_s: golden prompts, inside the pause.
      probe_max_abs: largest difference between replica and learner on the golden prompts, nats; None if not probed.
      num_running: requests in flight when the pause began; None if it never did, or nobody knows.
      error: why not updated.
      store_damaged: the store holds the version in a form that this replica can't use, damaged or on top of weights
        that it does not have: a whole copy (`WeightStore.want_anchor`) would help.
    """

    status: RoundStatus
    version: int
    stage_s: float = 0.0
    pause_s: float = 0.0
    probe_s: float = 0.0
    probe_max_abs: float | None = None
    num_running: int | None = None
    error: str | None = None
    store_damaged: bool = False


class _RefusedError(Exception):
    """The round ends before it changed anything."""


class _BrokenError(Exception):
    """The round ends and the replica must not go on serving."""


async def run_round(
    client: VllmClient,
    manifest: WeightManifest,
    settings: ServingSettings,
    *,
    round_id: str | None = None,
    waits: Waits | None = None,
    name: str = "",
) -> RoundOutcome:
    """Brings one replica to one version: lease and stage, pause, apply, probe, name the version, resume.

    Its requests carry a fencing token: what arrives after the next round got the lease is refused.

    Answers in flight survive with a version span for each part, and no token of new weights leaves the replica before
    their golden prompts passed. The order makes every crash recoverable by another round: weights carry the name
    "unproven" until the probe passed, so "paused, and the name is that of the applied version" means proven, whoever
    finds it. Weights that fail stay behind the pause and everything in flight is aborted.

    A cancelled round resumes the old weights; once weights have changed it waits for the verdict first. Each step is
    bounded by `settings.update_timeout_s`, all steps inside the pause by one such time, and leaving by another.

    Args:
      round_id: names the holder of the replica's lease; the same id again takes over from a controller that died,
        another has to wait until the lease ended (`update_timeout_s` and a little). A new one by default.
      waits: where its waits are seen.
      name: of the replica, for them; its address by default.

    Raises:
      Nothing for what goes wrong on the replica; see `RoundOutcome.status`.
    """
    return await WeightRound(
        client,
        manifest,
        settings,
        round_id=round_id or uuid.uuid4().hex,
        waits=waits or Waits(),
        name=name or client.base_url,
    ).run()


class WeightRound:
    """One round on one replica: its inputs, what it knows of the replica by now, and what it measured.

    Args:
      round_id: names the holder of the replica's lease.
      waits: where its waits are seen.
      name: of the replica, for them.
    """

    def __init__(
        self,
        client: VllmClient,
        manifest: WeightManifest,
        settings: ServingSettings,
        *,
        round_id: str,
        waits: Waits,
        name: str,
    ) -> None:
        self._client, self._manifest, self._settings = client, manifest, settings
        self._control = client.control()
        self._round_id, self._waits, self._name = round_id, waits, name
        self._asked_for_lease = False
        #: by the event loop's clock, counted from before the request that got the lease: never too late
        self._leased_until_s = float("-inf")
        self._found_paused = False
        self._applied_before: int | None = None
        #: the worker holds this version already: a round before this one got so far
        self._is_applied = False
        self._paused_s: float | None = None
        #: set from just before weights may change until they are proven
        self._is_unproven = False
        self._is_proven = False
        self._stage_s = self._pause_s = self._probe_s = 0.0
        self._probe_max_abs: float | None = None
        self._num_running: int | None = None
        self._store_damaged = False
        self._left_paused = ""

    async def run(self) -> RoundOutcome:
        """Does the round, whatever goes wrong; see `run_round`."""
        failure: Exception | None = None
        try:
            if not self._manifest.golden:
                raise _RefusedError(
                    f"version {self._manifest.version} has no golden prompts, so nothing can prove it; "
                    f"set learner.num_golden"
                )
            await self._stage()
            await self._swap()
        except (_RefusedError, _BrokenError, ReplicaError, TimeoutError) as caught:
            failure = caught
        finally:
            serves = await _settled(self._leave())
        return self._outcome(failure, serves)

    async def _stage(self) -> None:
        """Takes the replica's lease and has the version read and checked while the replica serves."""
        started, version = _now(), self._manifest.version
        try:
            worker = await self._take_lease()
            self._applied_before, self._found_paused = worker.applied, await self._client.is_paused()
            poll_s = _MIN_POLL_S
            with self._waiting(f"version {version} to be read", _RefusedError) as wait:
                while worker.state == "reading":
                    await wait.pause(poll_s)
                    poll_s = min(2 * poll_s, _MAX_POLL_S)
                    async with wait.bound():  # the request itself has as long a bound
                        worker = await self._renew_lease()
        except Failed as failed:
            raise _RefusedError(str(failed)) from failed
        finally:
            self._stage_s = _now() - started
        self._is_applied, self._store_damaged = worker.state == "applied", worker.damaged
        if not self._is_applied and (worker.state != "staged" or worker.staged != version):
            raise _RefusedError(worker.error or f"version {version} is not staged on every worker: {worker}")

    async def _swap(self) -> None:
        """Everything inside the pause but its end, which `_leave` decides on."""
        if not self._is_applied:
            await _open_session(self._control)
        if self._leased_until_s < _now() + self._settings.update_timeout_s + _LEASE_MARGIN_S / 2:
            await self._renew_lease()
        self._paused_s = _now()
        with self._waiting(
            f"version {self._manifest.version} to be applied and proven, in a pause", TimeoutError
        ) as wait:
            # A request that was cut off may still be carried out later, after the resume that was meant to undo it.
            await _settled(self._apply_and_prove(wait))

    async def _apply_and_prove(self, wait: Wait) -> None:
        """In one request, since each lengthens the pause; what the replica showed is judged here."""
        async with wait.bound():
            self._check_lease()
            self._is_unproven = True
            self._prove(await self._swapped())
            self._check_lease()
            self._is_proven = True

    async def _swapped(self) -> Swapped:
        """Raises `_RefusedError` where it failed and the weights are what they were."""
        try:
            swapped = await self._control.swap(self._manifest, self._round_id, applies=not self._is_applied)
        except Failed as failed:
            await self._refuse_if_untouched(str(failed))
            raise
        self._num_running = swapped.num_running
        if not swapped.is_applied:
            await self._refuse_if_untouched(swapped.error)
        if swapped.error:
            raise _BrokenError(swapped.error)
        return swapped

    async def _refuse_if_untouched(self, error: str) -> None:
        worker = await self._client.worker_status(self._round_id)
        if not self._is_applied and worker.intact and worker.applied == self._applied_before:
            self._is_unproven = False
            raise _RefusedError(error)

    def _prove(self, swapped: Swapped) -> None:
        self._probe_s = swapped.proof_s
        tolerance = probe_tolerance(self._settings)
        self._probe_max_abs = difference = largest_difference(self._manifest.golden, swapped.logprobs)
        # Written so that NaN fails too.
        if not difference <= tolerance:
            raise _BrokenError(
                f"version {self._manifest.version}: golden log-probs differ from the learner's by up to "
                f"{difference:.3g} nats, expected at most {tolerance} (serving.probe_tolerance)"
            )

    async def _leave(self) -> bool:
        """Ends the pause if the weights may serve, else ends what is in flight; gives the lease back.

        Returns:
          Whether the replica serves, as far as this round can know.
        """
        if not self._asked_for_lease:
            return True
        try:
            with self._waiting("the round to end", TimeoutError) as wait:
                async with wait.bound():
                    return await self._end_pause()
        except (ReplicaError, TimeoutError) as error:
            self._left_paused = str(error)
            return False
        finally:
            if self._paused_s is not None:
                self._pause_s = _now() - self._paused_s
            with contextlib.suppress(ReplicaError):
                await self._control.release(self._round_id)

    async def _end_pause(self) -> bool:
        if self._paused_s is None and not self._found_paused:
            return True
        if _now() > self._leased_until_s:
            # Another round may be halfway: only a new lease makes this one's business of the pause.
            try:
                await self._take_lease()
            except Failed:
                return False
            if not await self._client.is_paused():
                return False
        if not await self._may_serve():
            await self._control.abort_all()
            return False
        for attempt in range(_RESUME_TRIES):
            try:
                if self._is_proven:
                    await self._control.serve(self._manifest.version)
                else:
                    await self._control.resume()
                break
            except ReplicaError:
                if attempt == _RESUME_TRIES - 1:
                    raise
        return True

    async def _may_serve(self) -> bool:
        """Whether the weights on the replica are proven, by this round or one before, or as this one found them."""
        if self._is_proven or self._is_unproven:
            return self._is_proven
        worker, named = await self._client.worker_status(self._round_id), await self._client.weight_version()
        if not worker.intact:
            return False
        if named is not None and named == worker.applied:
            return True
        return not self._found_paused and worker.applied == self._applied_before

    async def _take_lease(self) -> WorkerStatus:
        """Asks for the lease and the staging; `Failed` if another round holds the lease."""
        self._asked_for_lease, asked_s, lease_s = True, _now(), _lease_s(self._settings)
        manifest = self._manifest
        # A registry never writes a version again; a run's store may hold it in another form by now.
        sealed = manifest_sha256(manifest) if self._settings.follow == "aliases" else ""
        asked = self._control.stage(manifest.version, manifest.content_sha256, self._round_id, lease_s, sealed=sealed)
        # Not cut off: a lease that this round does not know of would keep the next one out.
        worker = await _settled(asked)
        self._leased_until_s = asked_s + lease_s
        return worker

    async def _renew_lease(self) -> WorkerStatus:
        asked_s = _now()
        worker = await self._client.worker_status(self._round_id)
        self._check_lease()
        self._leased_until_s = asked_s + _lease_s(self._settings)
        return worker

    def _check_lease(self) -> None:
        """Raises once the lease may have ended: another round may have begun, and its steps must not be disturbed."""
        if _now() > self._leased_until_s:
            raise _RefusedError(
                f"the lease of {_lease_s(self._settings)} s ended before it was renewed: the replica or this "
                f"process was held up; the next round starts anew"
            )

    def _waiting(self, what: str, error: type[Exception]) -> AbstractContextManager[Wait]:
        """A wait for the replica, of at most `serving.update_timeout_s`."""
        limit_s = self._settings.update_timeout_s
        return self._waits.waiting(
            what, on=self._name, limit_s=limit_s, setting="serving.update_timeout_s", error=error
        )

    def _outcome(self, failure: Exception | None, serves: bool) -> RoundOutcome:
        status: RoundStatus = "unfit"
        if serves and failure is None:
            status = "updated"
        elif serves and isinstance(failure, _RefusedError | Superseded | TimeoutError):
            status = "rejected"
        error = None
        if status != "updated":
            error = str(failure or f"the weights are proven, but the engine is still paused: {self._left_paused}")
        return RoundOutcome(
            status=status,
            version=self._manifest.version,
            stage_s=self._stage_s,
            pause_s=self._pause_s,
            probe_s=self._probe_s,
            probe_max_abs=self._probe_max_abs,
            num_running=self._num_running,
            error=error,
            store_damaged=self._store_damaged,
        )


def _lease_s(settings: ServingSettings) -> float:
    return settings.update_timeout_s + _LEASE_MARGIN_S


async def _open_session(control: RoundControl) -> None:
    """Opens vLLM's update session, after ending one that a dead controller left open; needs the lease."""
    try:
        await control.start_update()
    except Failed as failed:
        await control.end_stuck_update()
        try:
            await control.start_update()
        except Failed:
            raise _RefusedError(str(failed)) from failed


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _settled(work: Coroutine[Any, Any, T]) -> T:
    """Awaits work that must not be cut off; a cancellation is raised when it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # taken note of: the cancellation is what is raised
        raise
