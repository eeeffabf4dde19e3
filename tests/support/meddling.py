"""A replica's client whose requests something happens before or after: a controller dies, dawdles, is overtaken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from serving_bridge.vllm import Session, VllmClient

#: what happens, told the route of the request
Meddle = Callable[[str], Awaitable[None]]


class DiedError(Exception):
    """A controller's end, at a point where it can't do anything about it."""


async def nothing(route: str) -> None:
    """Doesn't meddle."""


class MeddlingSession:
    """A session that lets something happen before each request, and after each that succeeded."""

    def __init__(self, session: Session, *, before: Meddle, after: Meddle) -> None:
        self._session, self._before, self._after = session, before, after

    def request(self, method: str, url: str, **arguments: Any) -> AbstractAsyncContextManager[Any]:
        return self._request(method, url, arguments)

    @asynccontextmanager
    async def _request(self, method: str, url: str, arguments: dict[str, Any]) -> AsyncIterator[Any]:
        route = urlsplit(url).path
        await self._before(route)
        async with self._session.request(method, url, **arguments) as response:
            yield response
        if response.status < 300:
            await self._after(route)


def meddling(
    client: VllmClient,
    session: Session,
    *,
    after: Meddle = nothing,
    before: Meddle = nothing,
    control_timeout_s: float = 30.0,
) -> VllmClient:
    """A client of the same replica. What `before` and `after` raise, its requests raise."""
    meddler = MeddlingSession(session, before=before, after=after)
    return VllmClient(client.base_url, meddler, control_timeout_s=control_timeout_s, token=client.token)
