"""One weight round on one replica: stage while it serves, swap and prove by golden prompts inside one short pause."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np

from learner_jax.contracts import GoldenPrompt, WeightManifest
from learner_jax.runtime import Wait, Waits
from serving_bridge.settings import ServingSettings
from serving_bridge.vllm import Failed, ReplicaError, VllmClient, WorkerStatus
from serving_bridge.weights import WeightStore

T = TypeVar("T")
RoundStatus = Literal["updated", "rejected", "unfit"]

#: ahead of every sampling request where the server is full
PROBE_PRIORITY = -1
#: Largest golden-prompt log-prob difference accepted, nats, by serving dtype, where serving.probe_tolerance is unset.
#: Sampler and learner add up in different orders: on the CPU up to 2e-5 apart in float32 (TF32 on GPUs: near 1e-3) and
#: 0.16 in bfloat16. A tensor that is transposed or of other weights moves some log-prob by 0.33 (a query projection of
#: twelve) to 9 (the embedding). What one step changes in one tensor is below either tolerance: that all tensors arrived
#: is for hashes and loaders to check.
PROBE_TOLERANCE: Mapping[str, float] = MappingProxyType({"float32": 1e-3, "bfloat16": 0.3})

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
      num_running: requests in flight when the pause began; None if it never did.
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


@dataclass
class _Round:
    """One round's inputs, what it knows of the replica by now, and what it measured."""

    client: VllmClient
    store: WeightStore
    manifest: WeightManifest
    settings: ServingSettings
    round_id: str
    waits: Waits
    name: str
    asked_for_lease: bool = False
    #: by the event loop's clock, counted from before the request that got the lease: never too late
    leased_until_s: float = float("-inf")
    found_paused: bool = False
    applied_before: int | None = None
    #: the worker holds this version already: a round before this one got so far
    is_applied: bool = False
    paused_s: float | None = None
    #: set from just before weights may change until they are proven
    is_unproven: bool = False
    is_proven: bool = False
    stage_s: float = 0.0
    pause_s: float = 0.0
    probe_s: float = 0.0
    probe_max_abs: float | None = None
    num_running: int | None = None
    store_damaged: bool = False


async def run_round(
    client: VllmClient,
    store: WeightStore,
    manifest: WeightManifest,
    settings: ServingSettings,
    *,
    round_id: str | None = None,
    waits: Waits | None = None,
    name: str = "",
) -> RoundOutcome:
    """Brings one replica to one version: lease and stage, pause, apply, probe, name the version, resume.

    Answers in flight survive with a version span for each part, and no token is sampled from weights before their
    golden prompts passed. The order makes every crash recoverable by another round: weights carry the name "unproven"
    until the probe passed, so "paused, and the name is that of the applied version" means proven, whoever finds it.
    Weights that fail stay behind the pause and everything in flight is aborted.

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
    this = _Round(
        client, store, manifest, settings, round_id or uuid.uuid4().hex, waits or Waits(), name or client.base_url
    )
    failure: Exception | None = None
    try:
        if not manifest.golden:
            raise _RefusedError(
                f"version {manifest.version} has no golden prompts, so nothing can prove it; set learner.num_golden"
            )
        await _stage(this)
        await _swap(this)
    except (_RefusedError, _BrokenError, ReplicaError, TimeoutError) as caught:
        failure = caught
    finally:
        serves = await _settled(_leave(this))
    return _outcome(this, failure, serves)


async def probe(client: VllmClient, golden: Sequence[GoldenPrompt], timeout_s: float) -> float:
    """Largest absolute difference between a replica's and the learner's log-probs of the golden prompts, nats.

    Raises:
      ReplicaError: the replica did not answer.
    """
    ids = zip(golden, client.probe_ids(len(golden)), strict=True)
    answers = await asyncio.gather(
        *(
            client.prompt_logprobs(prompt.tokens, timeout_s=timeout_s, priority=PROBE_PRIORITY, request_id=request_id)
            for prompt, request_id in ids
        )
    )
    pairs = zip(golden, answers, strict=True)
    # NumPy's maximum keeps a NaN, wherever it is.
    return float(np.max([np.abs(got - np.asarray(prompt.logprobs, np.float32)).max() for prompt, got in pairs]))


def probe_tolerance(settings: ServingSettings) -> float:
    """The golden-prompt log-prob difference that a round accepts, nats."""
    return PROBE_TOLERANCE[settings.dtype] if settings.probe_tolerance is None else settings.probe_tolerance


async def _stage(this: _Round) -> None:
    """Takes the replica's lease and has the version read and checked while the replica serves."""
    started, version = _now(), this.manifest.version
    try:
        worker = await _take_lease(this)
        this.applied_before, this.found_paused = worker.applied, await this.client.is_paused()
        poll_s = _MIN_POLL_S
        with _waiting(this, f"version {version} to be read", _RefusedError) as wait:
            while worker.state == "reading":
                await wait.pause(poll_s)
                poll_s = min(2 * poll_s, _MAX_POLL_S)
                async with wait.bound():  # the request itself has as long a bound
                    worker = await _renew_lease(this)
    except Failed as failed:
        raise _RefusedError(str(failed)) from failed
    finally:
        this.stage_s = _now() - started
    this.is_applied, this.store_damaged = worker.state == "applied", worker.damaged
    if not this.is_applied and (worker.state != "staged" or worker.staged != version):
        raise _RefusedError(worker.error or f"version {version} is not staged on every worker: {worker}")


async def _swap(this: _Round) -> None:
    """Everything inside the pause but its end, which `_leave` decides on."""
    this.num_running = await this.client.num_requests()
    if not this.is_applied:
        await _open_session(this.client)
    await _renew_lease(this)
    this.paused_s = _now()
    with _waiting(this, f"version {this.manifest.version} to be applied and proven, in a pause", TimeoutError) as wait:
        async with wait.bound():
            # A request that was cut off may still be carried out later, after the resume that was meant to undo it.
            await _settled(this.client.pause())
        await _settled(_apply_and_prove(this, wait))


async def _apply_and_prove(this: _Round, wait: Wait) -> None:
    client, manifest = this.client, this.manifest
    async with wait.bound():
        _check_lease(this)
        this.is_unproven = True
        if this.is_applied:
            await client.name_version(None)
        else:
            await _apply(this)
        await _prove(this)
        _check_lease(this)
        await client.name_version(manifest.version)
        this.is_proven = True


async def _apply(this: _Round) -> None:
    client, manifest = this.client, this.manifest
    try:
        await client.update(manifest.version, manifest.content_sha256, this.round_id)
    except Failed as failed:
        worker = await client.worker_status(this.round_id)
        if worker.intact and worker.applied == this.applied_before:
            this.is_unproven = False
            raise _RefusedError(str(failed)) from failed
        raise
    await client.finish_update()


async def _prove(this: _Round) -> None:
    started, tolerance = _now(), probe_tolerance(this.settings)
    try:
        difference = await probe(this.client, this.manifest.golden, this.settings.update_timeout_s)
    finally:
        this.probe_s = _now() - started
    this.probe_max_abs = difference
    # Written so that NaN fails too.
    if not difference <= tolerance:
        raise _BrokenError(
            f"version {this.manifest.version}: golden log-probs differ from the learner's by up to {difference:.3g} "
            f"nats, expected at most {tolerance} (serving.probe_tolerance)"
        )


async def _leave(this: _Round) -> bool:
    """Ends the pause if the weights may serve, else ends what is in flight; gives the lease back.

    Returns:
      Whether the replica serves, as far as this round can know.
    """
    if not this.asked_for_lease:
        return True
    try:
        with _waiting(this, "the round to end", TimeoutError) as wait:
            async with wait.bound():
                return await _end_pause(this)
    except (ReplicaError, TimeoutError):
        return False
    finally:
        if this.paused_s is not None:
            this.pause_s = _now() - this.paused_s
        with contextlib.suppress(ReplicaError):
            await this.client.release(this.round_id)


async def _end_pause(this: _Round) -> bool:
    if this.paused_s is None and not this.found_paused:
        return True
    if _now() > this.leased_until_s:
        # Another round may be halfway: only a new lease makes this one's business of the pause.
        try:
            await _take_lease(this)
        except Failed:
            return False
        if not await this.client.is_paused():
            return False
    if not await _may_serve(this):
        await this.client.abort_all()
        return False
    for attempt in range(_RESUME_TRIES):
        try:
            await this.client.resume()
            break
        except ReplicaError:
            if attempt == _RESUME_TRIES - 1:
                raise
    return True


async def _may_serve(this: _Round) -> bool:
    """Whether the weights that the replica holds are proven, by this round or one before, or as this one found them."""
    if this.is_proven or this.is_unproven:
        return this.is_proven
    worker, named = await this.client.worker_status(this.round_id), await this.client.weight_version()
    if not worker.intact:
        return False
    if named is not None and named == worker.applied:
        return True
    return not this.found_paused and worker.applied == this.applied_before


async def _take_lease(this: _Round) -> WorkerStatus:
    """Asks for the lease and the staging; `Failed` if another round holds the lease."""
    this.asked_for_lease, asked_s, lease_s = True, _now(), _lease_s(this.settings)
    manifest = this.manifest
    # Not cut off: a lease that this round does not know of would keep the next one out.
    worker = await _settled(this.client.stage(manifest.version, manifest.content_sha256, this.round_id, lease_s))
    this.leased_until_s = asked_s + lease_s
    return worker


async def _renew_lease(this: _Round) -> WorkerStatus:
    asked_s = _now()
    worker = await this.client.worker_status(this.round_id)
    _check_lease(this)
    this.leased_until_s = asked_s + _lease_s(this.settings)
    return worker


def _check_lease(this: _Round) -> None:
    """Raises once the lease may have ended: another round may have begun, and its steps must not be disturbed."""
    if _now() > this.leased_until_s:
        raise _RefusedError(
            f"the lease of {_lease_s(this.settings)} s ended before it was renewed: the replica or this process was "
            f"held up; the next round starts anew"
        )


def _lease_s(settings: ServingSettings) -> float:
    return settings.update_timeout_s + _LEASE_MARGIN_S


async def _open_session(client: VllmClient) -> None:
    """Opens vLLM's update session, after ending one that a dead controller left open; needs the lease."""
    try:
        await client.start_update()
    except Failed as failed:
        await client.end_stuck_update()
        try:
            await client.start_update()
        except Failed:
            raise _RefusedError(str(failed)) from failed


def _waiting(this: _Round, what: str, error: type[Exception]) -> AbstractContextManager[Wait]:
    """A wait for the replica, of at most `serving.update_timeout_s`."""
    limit_s = this.settings.update_timeout_s
    return this.waits.waiting(what, on=this.name, limit_s=limit_s, setting="serving.update_timeout_s", error=error)


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


def _outcome(this: _Round, failure: Exception | None, serves: bool) -> RoundOutcome:
    status: RoundStatus = "unfit"
    if serves and failure is None:
        status = "updated"
    elif serves and isinstance(failure, _RefusedError | TimeoutError):
        status = "rejected"
    error = None
    if status != "updated":
        error = str(failure or "the weights are proven, but the engine is still paused")
    return RoundOutcome(
        status=status,
        version=this.manifest.version,
        stage_s=this.stage_s,
        pause_s=this.pause_s,
        probe_s=this.probe_s,
        probe_max_abs=this.probe_max_abs,
        num_running=this.num_running if this.paused_s is not None else None,
        error=error,
        store_damaged=this.store_damaged,
    )
