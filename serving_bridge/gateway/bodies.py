"""The head and the body of a request, as far as they are read: what can't be a request of ours costs nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

from serving_bridge.gateway.errors import GatewayError, invalid

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BODY_S = 30.0
_DISCARD_S = 2.0
_TIMEOUT_HEADER = "x-weir-timeout-s"
#: parameters of a query that hold a key where people put one
_KEY_NAMES = frozenset({"api_key", "api-key", "apikey", "key", "token", "access_token", "authorization"})


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def headers_of(scope: Scope) -> Mapping[str, str]:
    """Names in lower case. Raises `GatewayError` for a credential that is sent twice, or in the address."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1")
        if name == "authorization" and name in found:
            raise invalid("there are two Authorization headers")
        found[name] = raw_value.decode("latin-1")
    names = {name.lower() for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)}
    if names & _KEY_NAMES:
        raise invalid(
            "a key belongs in the Authorization header: addresses are written to logs on the way. Treat the key that "
            "was sent here as known to others, and rotate it",
            code="key_in_query",
        )
    return found


def time_left(headers: Mapping[str, str], longest_s: float) -> float:
    """Seconds that a request may take: what it says itself, at most `longest_s`. Raises `GatewayError`."""
    given = headers.get(_TIMEOUT_HEADER)
    if given is None:
        return longest_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise invalid(f"the header {_TIMEOUT_HEADER} is {given[:50]!r}, expected seconds above 0")
    return min(seconds, longest_s)


async def read_body(headers: Mapping[str, str], receive: Receive, *, max_bytes: int) -> bytes:
    """The whole body of a JSON request.

    Raises:
      GatewayError: it is too large, comes too slowly, or is said to be something else.
      ClientGone: the client left before its end.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise GatewayError(415, "expected Content-Type: application/json", code="unsupported_media_type", closes=True)
    if headers.get("content-encoding", "identity") != "identity":
        raise GatewayError(415, "expected a body without Content-Encoding", code="unsupported_media_type", closes=True)
    length = headers.get("content-length", "0")
    if len(length) > 15 or int(length) > max_bytes:
        await _discarded(receive, 4 * max_bytes)
        raise _too_large(max_bytes)
    pieces, size = [], 0
    try:
        async with asyncio.timeout(_BODY_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientGone
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > max_bytes:
                    await _discarded(receive, 4 * max_bytes)
                    raise _too_large(max_bytes)
                if not message.get("more_body", False):
                    return b"".join(pieces)
    except TimeoutError:
        message_ = f"the body did not come within {_BODY_S:g} s"
        raise GatewayError(408, message_, code="request_timeout", closes=True) from None


async def skip_body(headers: Mapping[str, str], receive: Receive, *, max_bytes: int) -> bool:
    """Drops the body of a request that is refused unread; whether all of it came, so that its connection is of use."""
    return "expect" not in headers and await _discarded(receive, 4 * max_bytes)


async def _discarded(receive: Receive, most: int) -> bool:
    """Reads on for a moment: a connection that is closed over unread bytes may lose the answer that says why."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while size <= most:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return True
    return False


async def until_gone(receive: Receive) -> None:
    """Returns when the client has left; for after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(max_bytes: int) -> GatewayError:
    return GatewayError(413, f"expected a body of at most {max_bytes} bytes", code="request_too_large", closes=True)
