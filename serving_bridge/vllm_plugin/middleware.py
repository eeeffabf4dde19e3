"""Stands before vLLM's server, as `--middleware`: what `access.gate` does not let in never reaches a route.

Requests for packed answers, for fencing tokens and of weight rounds are answered here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from serving_bridge.access import (
    CONTROL_TOKEN,
    ROUND_ROUTE,
    Entry,
    Fence,
    Gate,
    Generate,
    Refused,
    Serve,
    Swap,
    WorkerCall,
    without_request_id,
)
from serving_bridge.vllm_plugin.packed import PACKED_TYPE

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_JSON = b"application/json"
_METRICS_ROUTE = "/metrics"


class GateMiddleware:
    """The ASGI application behind the gate that the environment describes. Raises `GateError` where it does not."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._gate = Gate.of_environment(os.environ)
        self._fence = Fence()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._app(scope, receive, send)
        elif kind == "http":
            await self._http(scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "no such route"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            entry = self._enter(scope)
            body = await self._body(entry, receive) if entry.route.max_bytes else b""
            if body is None:
                return
            asked = self._gate.check_body(entry, body) if entry.route.max_bytes else None
            call = asked.method if isinstance(asked, WorkerCall) else None
            self._fence.check(scope["path"], call, entry.fencing_token)
        except Refused as refused:
            await _refuse(send, refused)
            return
        if isinstance(asked, Generate) and asked.packed:
            await _sample(scope["app"].state.engine_client, asked, receive, send)
        elif isinstance(asked, Swap | Serve):
            await self._end_of_round(scope, asked, entry.fencing_token, send)
        elif scope["path"] == ROUND_ROUTE:
            await _answer(send, 200, msgspec.json.encode({"fencing_token": self._fence.next_token()}))
        else:
            if scope["path"] == _METRICS_ROUTE:
                await _refresh_metrics(scope["app"].state.engine_client)
            scope["headers"] = without_request_id(scope["headers"])
            await self._app(scope, _again(body, receive), self._watched(send, call, entry.fencing_token))

    async def _end_of_round(self, scope: Scope, asked: Swap | Serve, token: int | None, send: Send) -> None:
        """Carried out to its end, also when the client goes away; a later round ends it at its next step."""
        from serving_bridge.vllm_plugin.swap import serve, swap  # vLLM is imported only where it runs

        engine = scope["app"].state.engine_client

        def check() -> None:
            self._fence.check(scope["path"], None, token)

        if isinstance(asked, Serve):
            await _answer(send, *await serve(engine, asked, check=check))
            return
        status, payload = await swap(engine, asked, control_token=os.environ[CONTROL_TOKEN], check=check)
        await _answer(send, status, payload, PACKED_TYPE if status == 200 else _JSON)

    def _watched(self, send: Send, call: str | None, token: int | None) -> Send:
        """Tells the fence how a request was answered, before its sender learns of it."""
        if token is None:
            return send

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._fence.answered(call, token, message["status"])
            await send(message)

        return watch

    def _enter(self, scope: Scope) -> Entry:
        raw_path = scope.get("raw_path") or b""
        entry = self._gate.enter(scope["method"], raw_path, scope.get("query_string", b""), scope["headers"])
        # What routes by another field than this one looks at must see the same path there.
        if scope["path"].encode() != raw_path or scope.get("root_path"):
            raise Refused(404, "no such route")
        return entry

    async def _body(self, entry: Entry, receive: Receive) -> bytes | None:
        """The whole body; None if the client went away before it was here."""
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > entry.route.max_bytes:
                raise Refused(413, f"expected a body of at most {entry.route.max_bytes} bytes")
            if not message.get("more_body", False):
                break
        return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then whatever comes after it."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def _sample(engine: Any, asked: Generate, receive: Receive, send: Send) -> None:
    """Answers from the engine; a client that goes away ends its request."""
    from serving_bridge.vllm_plugin.sampling import sample, until_gone  # vLLM is imported only where it runs

    work = asyncio.ensure_future(sample(engine, asked))
    if not await until_gone(receive, work):
        return
    status, payload = work.result()
    await _answer(send, status, payload, PACKED_TYPE if status == 200 else _JSON)


async def _refresh_metrics(engine: Any) -> None:
    from serving_bridge.vllm_plugin.users_memory import refresh  # its metric is registered only where vLLM runs

    await refresh(engine)


async def _refuse(send: Send, refused: Refused) -> None:
    more = [(b"connection", b"close")]
    if refused.status == 401:
        more.append((b"www-authenticate", b"Bearer"))
    await _answer(send, refused.status, refused.payload(), more=more)


async def _answer(
    send: Send, status: int, payload: bytes, kind: bytes = _JSON, more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(payload)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": payload})
