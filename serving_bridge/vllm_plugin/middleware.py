"""Stands before vLLM's server, as `--middleware`: what `access.gate` does not let in never reaches a route."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving_bridge.access import Entry, Gate, Refused, without_request_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class GateMiddleware:
    """The ASGI application behind the gate that the environment describes. Raises `GateError` where it does not."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._gate = Gate.of_environment(os.environ)

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
        except Refused as refused:
            await _answer(send, refused)
            return
        if body is not None:
            scope["headers"] = without_request_id(scope["headers"])
            await self._app(scope, _again(body, receive), send)

    def _enter(self, scope: Scope) -> Entry:
        raw_path = scope.get("raw_path") or b""
        entry = self._gate.enter(scope["method"], raw_path, scope.get("query_string", b""), scope["headers"])
        # What routes by another field than this one looks at must see the same path there.
        if scope["path"].encode() != raw_path or scope.get("root_path"):
            raise Refused(404, "no such route")
        return entry

    async def _body(self, entry: Entry, receive: Receive) -> bytes | None:
        """The whole body, checked; None if the client went away before it was here."""
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
        body = b"".join(pieces)
        self._gate.check_body(entry, body)
        return body


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


async def _answer(send: Send, refused: Refused) -> None:
    payload = refused.payload()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(payload)).encode()),
        (b"connection", b"close"),
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": payload})
