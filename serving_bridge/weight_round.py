"""One weight round on one replica: stage while it serves, swap inside a short pause, prove it by golden prompts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from learner_jax.contracts import GoldenPrompt, WeightManifest
from serving_bridge.config import ServingSettings
from serving_bridge.vllm_client import Failed, ReplicaError, VllmClient
from serving_bridge.weight_store import WeightStore

RoundStatus = Literal["updated", "rejected", "unfit"]

#: ahead of every sampling request where the server is full
PROBE_PRIORITY = -1
_MIN_POLL_S, _MAX_POLL_S = 0.005, 0.25
_RESUME_TRIES = 3


@dataclass(frozen=True)
class RoundOutcome:
    """What happened to one replica in one round.

    Attributes:
      status: "updated": serves the new version, proven; "rejected": serves what it served before, nothing was touched;
        "unfit": must not serve (weights of no version, wrong log-probs, or out of reach): full update or restart.
      stage_s: reading and checking, while serving.
      pause_s: time without sampling.
      probe_s: golden prompts, while serving again.
      probe_max_abs: largest difference between replica and learner on the golden prompts, nats; None if not probed.
      num_running: requests in flight when the pause began; None if it never did.
      error: why not updated.
    """

    status: RoundStatus
    version: int
    stage_s: float = 0.0
    pause_s: float = 0.0
    probe_s: float = 0.0
    probe_max_abs: float | None = None
    num_running: int | None = None
    error: str | None = None


class _RefusedError(Exception):
    """The round ends and the replica still serves what it served before."""


class _BrokenError(Exception):
    """The round ends and the replica must not go on serving."""


@dataclass
class _Measured:
    stage_s: float = 0.0
    pause_s: float = 0.0
    probe_s: float = 0.0
    probe_max_abs: float | None = None
    num_running: int | None = None


async def run_round(
    client: VllmClient, store: WeightStore, manifest: WeightManifest, settings: ServingSettings
) -> RoundOutcome:
    """Brings one replica to one version.

    Answers in flight survive, with a version span for each part. vLLM can't probe while paused, so a few tokens of
    the new version may be sampled before the verdict: whoever samples must not use answers of a version until its
    round is "updated". After a bad verdict everything in flight is aborted. Every step is bounded by
    `settings.update_timeout_s`, and the engine is never left paused, also when this is cancelled.

    Raises:
      Nothing for what goes wrong on the replica; see `RoundOutcome.status`.
    """
    measured = _Measured()
    status: RoundStatus = "updated"
    error: str | None = None
    try:
        await _stage(client, store, manifest, settings, measured)
        await _swap(client, manifest, settings, measured)
        await _probe(client, manifest, settings, measured)
    except _RefusedError as refused:
        status, error = "rejected", str(refused)
    except (_BrokenError, ReplicaError, TimeoutError) as broken:
        status = "unfit"
        error = str(broken) or f"a step took longer than serving.update_timeout_s ({settings.update_timeout_s} s)"
        await _abort_in_flight(client)
    return RoundOutcome(
        status=status,
        version=manifest.version,
        stage_s=measured.stage_s,
        pause_s=measured.pause_s,
        probe_s=measured.probe_s,
        probe_max_abs=measured.probe_max_abs,
        num_running=measured.num_running,
        error=error,
    )


async def probe(client: VllmClient, golden: Sequence[GoldenPrompt], timeout_s: float) -> float:
    """Largest absolute difference between a replica's and the learner's log-probs of the golden prompts, nats.

    Raises:
      ReplicaError: the replica did not answer.
    """
    answers = await asyncio.gather(
        *(client.prompt_logprobs(prompt.tokens, timeout_s=timeout_s, priority=PROBE_PRIORITY) for prompt in golden)
    )
    pairs = zip(golden, answers, strict=True)
    return max(float(np.max(np.abs(got - np.asarray(prompt.logprobs, np.float32)))) for prompt, got in pairs)


async def _stage(
    client: VllmClient, store: WeightStore, manifest: WeightManifest, settings: ServingSettings, measured: _Measured
) -> None:
    started = time.perf_counter()
    try:
        await client.stage(store.folder(manifest.version).absolute(), manifest.content_sha256)
        poll_s = _MIN_POLL_S
        while (worker := await client.worker_status()).state == "reading":
            if time.perf_counter() - started > settings.update_timeout_s:
                raise _RefusedError(
                    f"version {manifest.version} was not read within serving.update_timeout_s "
                    f"({settings.update_timeout_s} s)"
                )
            await asyncio.sleep(poll_s)
            poll_s = min(2 * poll_s, _MAX_POLL_S)
    except Failed as failed:
        raise _RefusedError(str(failed)) from failed
    finally:
        measured.stage_s = time.perf_counter() - started
    if worker.state != "staged" or worker.staged != manifest.version:
        raise _RefusedError(worker.error or f"version {manifest.version} is not staged on every worker: {worker}")


async def _swap(client: VllmClient, manifest: WeightManifest, settings: ServingSettings, measured: _Measured) -> None:
    await _open_session(client)
    measured.num_running = await client.num_requests()
    started = time.perf_counter()
    try:
        async with asyncio.timeout(settings.update_timeout_s):
            await client.pause()
            try:
                await client.update(manifest.version, manifest.content_sha256)
            except Failed as failed:
                if (await client.worker_status()).intact:
                    raise _RefusedError(str(failed)) from failed
                raise
            await client.finish_update(manifest.version)
    finally:
        # Shielded: a cancelled round must not leave the engine paused.
        await asyncio.shield(_resume(client))
        measured.pause_s = time.perf_counter() - started


async def _probe(client: VllmClient, manifest: WeightManifest, settings: ServingSettings, measured: _Measured) -> None:
    served = await client.weight_version()
    if served != manifest.version:
        raise _BrokenError(f"the server says version {served} after the update, expected {manifest.version}")
    if not manifest.golden:
        raise _BrokenError(
            f"version {manifest.version} has no golden prompts, so nothing proves it; set learner.num_golden"
        )
    started = time.perf_counter()
    try:
        measured.probe_max_abs = await probe(client, manifest.golden, settings.update_timeout_s)
    finally:
        measured.probe_s = time.perf_counter() - started
    # Written so that NaN fails too.
    if not measured.probe_max_abs <= settings.probe_tolerance:
        raise _BrokenError(
            f"version {manifest.version}: golden log-probs differ from the learner's by up to "
            f"{measured.probe_max_abs:.3g} nats, expected at most serving.probe_tolerance {settings.probe_tolerance}"
        )


async def _open_session(client: VllmClient) -> None:
    """Opens vLLM's update session, after ending one that a dead controller left open."""
    try:
        await client.start_update()
    except Failed as failed:
        await client.end_stuck_update()
        try:
            await client.start_update()
        except Failed:
            raise _RefusedError(str(failed)) from failed


async def _resume(client: VllmClient) -> None:
    for attempt in range(_RESUME_TRIES):
        try:
            await client.resume()
            return
        except ReplicaError as error:
            if attempt == _RESUME_TRIES - 1:
                raise _BrokenError(f"the engine is still paused: {error}") from error


async def _abort_in_flight(client: VllmClient) -> None:
    """Answers that unproven weights began must not be finished; a server out of reach has none that count."""
    try:
        await client.abort_all()
    except ReplicaError:
        return
