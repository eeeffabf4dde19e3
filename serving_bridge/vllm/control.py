"""The control routes of one replica, as one weight round asks for them: each request carries its fencing token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from learner_jax.contracts import MAX_RECORD_TEXT, WeightManifest, quoted
from serving_bridge.access import FENCING_HEADER, ROUND_ROUTE, SERVE_ROUTE, SWAP_ROUTE
from serving_bridge.vllm.answers import Failed, Malformed, prompt_logprobs
from serving_bridge.vllm.transport import Transport
from serving_bridge.vllm.worker_status import WorkerStatus, worker_status
from serving_bridge.vllm_plugin import SwapAnswer


class _Round(msgspec.Struct):
    fencing_token: int


@dataclass(frozen=True)
class Swapped:
    """How far a swap came; the replica is paused.

    Attributes:
      is_applied: the weights are those of the version; if not, an update failed, and the workers' status says more.
      error: what failed; "" where nothing did.
      logprobs: float32[P-1] of each golden prompt, nats: entry t is log p(tokens[t+1] | tokens[:t+1]). Empty where
        something failed.
      proof_s: what these took.
      num_running: requests in flight when the pause began.
    """

    is_applied: bool
    error: str
    logprobs: Sequence[np.ndarray]
    proof_s: float
    num_running: int = 0


class RoundControl:
    """What one round changes on a replica. It takes its fencing token with its first request.

    Once a later round was given the replica's lease, the replica refuses whatever this one still asks for, however late
    it arrives: every method then raises `Superseded`.
    """

    def __init__(self, transport: Transport) -> None:
        self._http = transport
        self._token: int | None = None

    async def stage(
        self, version: int, content_sha256: str, round_id: str, lease_s: float, *, sealed: str = ""
    ) -> WorkerStatus:
        """Takes the replica's lease and has the workers read and check a version of its store in the background.

        Args:
          round_id: who asks; the lease is its own for `lease_s` seconds, and longer with each
            `VllmClient.worker_status`.
          sealed: `manifest_sha256` of the manifest that must be loaded by; empty for any of this content.

        Raises:
          Failed: another round holds the lease, or the workers can't stage.
        """
        wanted = {"version": version, "content_sha256": content_sha256, "round_id": round_id, "lease_s": lease_s}
        if sealed:
            wanted["sealed"] = sealed
        return worker_status(await self._call("weir_stage", wanted), self._http.base_url)

    async def release(self, round_id: str) -> None:
        """Gives the lease back; harmless for who doesn't hold it."""
        await self._call("weir_release", {"round_id": round_id})

    async def swap(self, manifest: WeightManifest, round_id: str, *, applies: bool) -> Swapped:
        """Pauses, applies the staged version, which then has no name, and asks for the golden prompts' log-probs.

        Args:
          applies: False where the workers hold the version already.

        Raises:
          Failed: it was not paused.
          Aborted, Malformed: the log-probs did not come, or not for these prompts.
        """
        golden = [prompt.tokens for prompt in manifest.golden]
        body = {
            "version": manifest.version,
            "content_sha256": manifest.content_sha256,
            "round_id": round_id,
            "applies": applies,
            "golden": golden,
        }
        found, where = self._swapped(await self._post(SWAP_ROUTE, body=body)), self._http.base_url
        if found.num_running < 0:
            raise Malformed(f"{where} says that {found.num_running} requests were in flight")
        if found.error:
            return Swapped(found.is_applied, quoted(found.error, MAX_RECORD_TEXT), [], 0.0, found.num_running)
        if not found.is_applied or len(found.proof) != len(golden) or not 0 <= found.proof_s < math.inf:
            raise Malformed(f"{where} sent {len(found.proof)} answers to {len(golden)} golden prompts")
        pairs = zip(found.proof, golden, strict=True)
        proof = [prompt_logprobs(a, tokens, where) for a, tokens in pairs]
        return Swapped(True, "", proof, found.proof_s, found.num_running)

    def _swapped(self, payload: bytes) -> SwapAnswer:
        try:
            return msgspec.msgpack.decode(payload, type=SwapAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"{self._http.base_url} sent an answer to a swap that can't be read: {error}") from error

    async def serve(self, version: int) -> None:
        """Gives the weights a version's name and ends the pause; may be asked again."""
        await self._post(SERVE_ROUTE, body={"version": version})

    async def pause(self) -> None:
        """Stops sampling; requests in flight stay and, on resume, recompute their KV cache with the weights of then."""
        await self._post("/pause", params={"mode": "keep", "clear_cache": "true"})

    async def resume(self) -> None:
        await self._post("/resume")

    async def start_update(self) -> None:
        await self._post("/start_weight_update")

    async def end_stuck_update(self) -> None:
        """Ends an update session that someone left open: an invalid update fails, and failing ends the session."""
        try:
            await self._post("/update_weights", body={"update_info": {}})
        except Failed:
            return
        raise Malformed(f"{self._http.base_url} accepted an empty weight update")

    async def name_version(self, version: int) -> None:
        """Gives the weights that the server has now a policy version, without changing them."""
        await self._post("/update_weight_version", body={"new_version": str(version)})

    async def abort_all(self) -> None:
        """Ends every request in flight with finish reason "abort"."""
        await self._post("/abort_requests", body={})

    async def _call(self, method: str, arguments: dict[str, Any]) -> bytes:
        return await self._post("/collective_rpc", body={"method": method, "kwargs": arguments})

    async def _post(
        self, route: str, *, body: dict[str, Any] | None = None, params: dict[str, str] | None = None
    ) -> bytes:
        if self._token is None:
            self._token = await self._take_token()
        headers = {FENCING_HEADER: str(self._token)}
        return await self._http.request("POST", route, body=body, params=params, headers=headers)

    async def _take_token(self) -> int:
        payload = await self._http.request("POST", ROUND_ROUTE)
        try:
            return msgspec.json.decode(payload, type=_Round).fencing_token
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"{self._http.base_url} sent {payload[:200]!r} for a fencing token: {error}") from error
