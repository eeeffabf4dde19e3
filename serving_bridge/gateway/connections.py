"""Connections of strangers: bounded in number, in the size and time of a request's head, and in how slowly they read.

uvicorn bounds none of these: a connection that sends or reads nothing stays open, and a head may be of any size.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving_bridge.gateway.errors import GatewayError

_HEAD_S = 10.0
_MAX_HEAD_BYTES = 32 << 10
_MAX_HEADERS = 100
#: for what is left of a body whose request was answered unread
_REST_S = 10.0
#: a client that has more waiting than sockets hold must read so much in so long
_MIN_READ_BYTES, _READ_S = 4 << 10, 10.0
#: bytes that the system takes beyond what a client has room for: without a bound, megabytes lie there unseen
_UNSENT_BYTES = 16 << 10
_RESET = struct.pack("ii", 1, 0)
_TCP_NOTSENT_LOWAT = 25  # of Linux; Python 3.11 has no name for it
_REASONS = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with these bounds; what breaks them is answered where it can be, and closed."""

    #: of the process; set by `protocol_class`
    max_connections = 1

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = self._num_headers = self._num_messages = 0
        self._in_head = True
        self._read_timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        if (own := transport.get_extra_info("socket")) is not None and sys.platform == "linux":
            own.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        for timer in (self._read_timer, self._rest_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reader()
        if not self._in_head and self._rest_timer is None:
            self._rest_timer = self.loop.call_later(_REST_S, self._rest_is_late, self._num_messages)

    def data_received(self, data: bytes) -> None:
        if self._in_head and self._head_timer is None:
            self._await_head()
        pending, number = self._in_head, self._num_messages
        super().data_received(data)
        is_all_head = self._in_head and number == self._num_messages  # no whole request came, whose body is no head
        if pending and is_all_head and not self.transport.is_closing():
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
        if self.parser.get_http_version() == "1.1" and sum(name == b"host" for name, _ in self.headers) != 1:
            self.send_400_response("")  # RFC 9112, 3.2: a proxy may have read another one
            raise ValueError("not one Host")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._num_messages += 1

    def send_400_response(self, msg: str) -> None:
        """To what is no HTTP, or a smuggler's: two lengths or hosts, a length and chunks, bare line ends."""
        if not self.transport.is_closing():
            self._refuse(GatewayError(400, "this is no request that the gateway can read", code="invalid_http"))

    def _watch_reader(self) -> None:
        """Begins to look at how fast what waits is read, where something does."""
        if self._read_timer is None and (size := self._unread()):
            self._read_timer = self.loop.call_later(_READ_S, self._look_at_reader, size)

    def _look_at_reader(self, before: int) -> None:
        """Ends a connection whose client reads too slowly; what it asked for is then broken off."""
        self._read_timer = None
        size = self._unread()
        is_growing = not self.flow.write_paused and self.cycle is not None and not self.cycle.response_complete
        if size and not is_growing and before - size < _MIN_READ_BYTES:
            if (own := self.transport.get_extra_info("socket")) is not None:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # else the system goes on sending
            self.transport.abort()
        else:
            self._watch_reader()

    def _rest_is_late(self, number: int) -> None:
        """Ends a connection on which the body of an answered request still comes."""
        self._rest_timer = None
        is_answered = self.cycle is not None and self.cycle.response_complete
        if not self._in_head and self._num_messages == number and is_answered and not self.transport.is_closing():
            self.transport.close()

    def _unread(self) -> int:
        """Bytes that wait for the client beyond what its socket holds."""
        return 0 if self.transport is None or self.transport.is_closing() else self.transport.get_write_buffer_size()

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
