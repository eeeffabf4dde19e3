"""Connections of strangers: bounded in number, in the size of a request's head, and in the time that it may take.

uvicorn bounds none of these: a connection that sends nothing stays open, and a head may be of any size.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving_bridge.gateway.errors import GatewayError

_HEAD_S = 10.0
_MAX_HEAD_BYTES = 32 << 10
_MAX_HEADERS = 100
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with these bounds; what breaks them is answered where it can be, and closed."""

    #: of the process; set by `protocol_class`
    max_connections = 1

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = self._num_headers = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head and self._head_timer is None:
            self._await_head()
        pending = self._in_head
        super().data_received(data)
        if pending and self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            self._check_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._num_headers = True, 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._num_headers <= _MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > _MAX_HEAD_BYTES or self._num_headers > _MAX_HEADERS:
            self._refuse_head()
            raise ValueError("the head is too large")  # the parser ends, and answers nothing more
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True

    def send_400_response(self, msg: str) -> None:
        """To what is no HTTP, or a smuggler's: two lengths, a length and chunks, bare line ends."""
        if not self.transport.is_closing():
            self._refuse(GatewayError(400, "this is no request that the gateway can read", code="invalid_http"))

    def _check_head(self) -> None:
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse_head()

    def _refuse_head(self) -> None:
        bound = f"expected at most {_MAX_HEADERS} headers and {_MAX_HEAD_BYTES} bytes"
        self._refuse(GatewayError(431, f"the request's head is too large: {bound}", code="invalid_http"))

    def _refuse(self, error: GatewayError) -> None:
        body = error.payload()
        head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        if self.cycle is None or self.cycle.response_complete:  # else an answer is on its way on this connection
            self.transport.write(head % (error.status, _REASONS[error.status], len(body)) + body)
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_S, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def protocol_class(max_connections: int) -> type[BoundedProtocol]:
    """The protocol of one server."""
    return type("_Protocol", (BoundedProtocol,), {"max_connections": max_connections})
