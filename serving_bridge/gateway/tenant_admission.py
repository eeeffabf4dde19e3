"""Tenants at the gateway's door: their keys, limits and queue (`serving_bridge.tenants`), in the gateway's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from serving_bridge import tenants
from serving_bridge.gateway.callers import Ask, Caller, Ticket
from serving_bridge.gateway.errors import GatewayError

_WAITING = "waiting_"


class TenantAdmission:
    """Admits who has a key of a tenant."""

    def __init__(self, known: tenants.Tenants) -> None:
        self._tenants = known

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps keys, limits and bills in step with the database. Raises `DatabaseError` where keys can't be read."""
        await self._tenants.start()
        exchanging = asyncio.ensure_future(self._tenants.run())
        try:
            yield
        finally:
            exchanging.cancel()
            with suppress(asyncio.CancelledError):
                await exchanging
            await self._tenants.close()

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        with _in_our_words():
            found = self._tenants.authenticate(headers)
        return Caller(found.tenant, found.key_id, found.cache_salt, found.consent, found.retention_days, known_as=found)

    def check_now(self, caller: Caller) -> None:
        with _in_our_words():
            self._tenants.check_now(caller.known_as)

    def check(self, caller: Caller, route: str, model: str) -> None:
        with _in_our_words():
            self._tenants.check(caller.known_as, route, model)

    async def admit(self, caller: Caller, ask: Ask, response_id: str, timeout_s: float) -> Ticket:
        wanted = tenants.Ask(ask.prompt_tokens, ask.max_tokens, ask.n, ask.model)
        with _in_our_words():
            return await self._tenants.admit(caller.known_as, wanted, response_id, timeout_s)

    def measured(self, *, kv: float, queue_s: float) -> None:
        self._tenants.measured(kv=kv, queue_s=queue_s)

    def figures(self) -> dict[str, Any]:
        found = self._tenants.figures()
        waiting = {name.removeprefix(_WAITING): value for name, value in found.items() if name.startswith(_WAITING)}
        return {"waiting": waiting, "unwritten_bills": found["unwritten_bills"], "cut_off": found["cut_off"]}


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except tenants.Refusal as refusal:
        raise GatewayError(
            refusal.status, str(refusal), code=refusal.code, kind=refusal.kind, retry_after_s=refusal.retry_after_s
        ) from None
