"""HTTP to one replica: the payload of its answer, or the error that says what went wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from serving_bridge.vllm.answers import Failed, Full, Rejected, Superseded, Unreachable

GENERATE = "/inference/v1/generate"
#: statuses of a server that another start's token, or another address, was meant for
_OTHER_SERVER = (401, 421)
#: status and type of vLLM's error where its bounds on waiting requests or tokens are reached
QUEUE_FULL = (503, "Service Unavailable")
#: status of a control request whose round another has followed
_SUPERSEDED = 409


class Session(Protocol):
    """What is used of an aiohttp session; simulations bring their own.

    `async with request(method, url, data=, headers=, params=, allow_redirects=, timeout=) as response` gives
    `response.status` and `await response.read()`; what fails on the way raises `aiohttp.ClientError`, `OSError` or
    `TimeoutError`.
    """

    @property
    def request(self) -> Callable[..., AbstractAsyncContextManager[Any]]: ...


@asynccontextmanager
async def http_session() -> AsyncIterator[Session]:
    """A real session with as many connections as are asked for: the dispatcher bounds them, not the pool."""
    import aiohttp  # here: it takes a seventh of a second, and many who import this file ask nobody

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


class Transport:
    """Requests to one address. The session is given and stays the caller's.

    Args:
      timeout_s: bound on each request that has none of its own.
      token: sent with every request; none if empty.
    """

    def __init__(self, base_url: str, session: Session, *, timeout_s: float, token: str) -> None:
        self.base_url = base_url
        self.token = token
        self._session = session
        self._timeout_s = timeout_s

    @property
    def authorization(self) -> dict[str, str]:
        """The header that every request carries."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def request(
        self,
        method: str,
        route: str,
        *,
        body: dict[str, Any] | None = None,
        params: dict[str, str] | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        timeout_s: float | None = None,
    ) -> bytes:
        """The payload of an answer of 2xx.

        Args:
          headers: besides the token and those of the body.

        Raises:
          Unreachable: no answer in time, or that of a server which another start's token is for.
          Full: too many requests wait there.
          Failed: another answer of 5xx.
          Superseded: an answer of 409.
          Rejected: any other.
        """
        import aiohttp

        total_s = self._timeout_s if timeout_s is None else timeout_s
        data = None if body is None else msgspec.json.encode(body)
        all_headers = {**self.authorization, **headers}
        if body is not None:
            all_headers["Content-Type"] = "application/json"
        if route != GENERATE:
            # uvicorn drops the connection after a 500 without saying so, and the next request on it would be lost.
            all_headers["Connection"] = "close"
        where = f"{method} {self.base_url}{route}"
        try:
            async with self._session.request(
                method,
                self.base_url + route,
                data=data,
                headers=all_headers,
                params=params,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=total_s),
            ) as response:
                payload = await response.read()
                status = response.status
        except TimeoutError:
            raise Unreachable(f"{where}: no answer within {total_s} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{where}: {error or type(error).__name__}") from error
        if (status, _type(payload)) == QUEUE_FULL:
            raise Full(f"{where}: {status} {_detail(payload)}")
        if status >= 500:
            raise Failed(f"{where}: {status} {_detail(payload)}")
        if status in _OTHER_SERVER:
            raise Unreachable(f"{where}: {status} {_detail(payload)}; the server that was known has ended")
        if status == _SUPERSEDED:
            raise Superseded(f"{where}: {status} {_detail(payload)}")
        if not 200 <= status < 300:
            raise Rejected(f"{where}: {status} {_detail(payload)}")
        return payload


def _type(payload: bytes) -> Any:
    """The type of an error answer; None where it has none."""
    try:
        return msgspec.json.decode(payload)["error"]["type"]
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError):
        return None


def _detail(payload: bytes) -> str:
    """The message of an error answer."""
    try:
        decoded = msgspec.json.decode(payload)
        return str(decoded.get("error", {}).get("message") or decoded)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError):
        return payload[:500].decode(errors="replace")
