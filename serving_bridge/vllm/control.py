"""The control routes of one replica, as one weight round asks for them: each request carries its fencing token."""

from __future__ import annotations

from typing import Any

import msgspec

from serving_bridge.access import FENCING_HEADER, ROUND_ROUTE
from serving_bridge.vllm.answers import Failed, Malformed
from serving_bridge.vllm.transport import Transport
from serving_bridge.vllm.worker_status import WorkerStatus, worker_status

#: version name of weights that no probe has passed yet; answers that carry it are refused
_UNPROVEN = "unproven"


class _Round(msgspec.Struct):
    fencing_token: int


class RoundControl:
    """What one round changes on a replica. It takes its fencing token with its first request.

    Once a later round was given the replica's lease, the replica refuses whatever this one still asks for, however late
    it arrives: every method then raises `Superseded`.
    """

    def __init__(self, transport: Transport) -> None:
        self._http = transport
        self._token: int | None = None

    async def stage(self, version: int, content_sha256: str, round_id: str, lease_s: float) -> WorkerStatus:
        """Takes the replica's lease and has the workers read and check a version of its store in the background.

        Args:
          round_id: who asks; the lease is its own for `lease_s` seconds, and longer with each
            `VllmClient.worker_status`.

        Raises:
          Failed: another round holds the lease, or the workers can't stage.
        """
        wanted = {"version": version, "content_sha256": content_sha256, "round_id": round_id, "lease_s": lease_s}
        return worker_status(await self._call("weir_stage", wanted), self._http.base_url)

    async def release(self, round_id: str) -> None:
        """Gives the lease back; harmless for who doesn't hold it."""
        await self._call("weir_release", {"round_id": round_id})

    async def pause(self) -> None:
        """Stops sampling; requests in flight stay and, on resume, recompute their KV cache with the weights of then."""
        await self._post("/pause", params={"mode": "keep", "clear_cache": "true"})

    async def resume(self) -> None:
        await self._post("/resume")

    async def start_update(self) -> None:
        await self._post("/start_weight_update")

    async def update(self, version: int, content_sha256: str, round_id: str) -> None:
        """Applies the staged version; the server must be paused and `round_id` hold the lease."""
        info = {"version": version, "content_sha256": content_sha256, "round_id": round_id}
        await self._post("/update_weights", body={"update_info": info})

    async def end_stuck_update(self) -> None:
        """Ends an update session that someone left open: an invalid update fails, and failing ends the session."""
        try:
            await self._post("/update_weights", body={"update_info": {}})
        except Failed:
            return
        raise Malformed(f"{self._http.base_url} accepted an empty weight update")

    async def finish_update(self) -> None:
        """Ends the update; answers carry no policy version from now on, until `name_version`."""
        await self._post("/finish_weight_update", body={"weight_version": _UNPROVEN})

    async def name_version(self, version: int | None) -> None:
        """Gives the weights that the server has now a policy version, or takes it from them, without changing them."""
        name = _UNPROVEN if version is None else str(version)
        await self._post("/update_weight_version", body={"new_version": name})

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
