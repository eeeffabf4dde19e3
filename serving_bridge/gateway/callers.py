"""Who asks, and what the gateway needs of the rooms that know tenants and guards: the doors for both.

`serving_bridge.tenants` and `serving_bridge.safety` stand behind these; without them one tenant has the gateway for
himself, and nothing is filtered.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from serving_bridge.gateway.answers import TextGuard
from serving_bridge.gateway.errors import GatewayError
from serving_bridge.safety import Messages

#: names under which a gateway without tenants is reached
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Caller:
    """Whose request it is.

    Attributes:
      cache_salt: parts the tenant's prefix cache from all others; "" for none.
      consents: whether the tenant lets requests be kept and learned from that ask for it.
      retention_days: for which they may be kept; 0 keeps none.
      known_as: what the admission knows the caller by.
    """

    tenant: str
    key_id: str = ""
    cache_salt: str = ""
    consents: bool = False
    retention_days: int = 0
    known_as: Any = None


@dataclass(frozen=True)
class Ask:
    """What a request may take at most.

    Attributes:
      n: answers of `max_tokens` each.
    """

    prompt_tokens: int
    max_tokens: int
    n: int
    model: str


class Ticket(Protocol):
    """Leave for one request, which ends by `settle` or `cancel`."""

    @property
    def priority(self) -> int:
        """For vLLM's scheduler; lower goes first."""

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Tells what it took, also where it was broken off."""

    def cancel(self) -> None:
        """No replica has worked on it."""


class Admission(Protocol):
    """Who may ask, and when."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Keeps it at work while the gateway serves."""

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Who sends a request. Raises `GatewayError` of 401 or 403."""

    def check_now(self, caller: Caller) -> None:
        """Whether any request of the caller's could pass now, before it is read. Raises `GatewayError` of 429."""

    def check(self, caller: Caller, route: str, model: str) -> None:
        """Whether the caller's key is for this. Raises `GatewayError` of 403."""

    async def admit(self, caller: Caller, ask: Ask, response_id: str, timeout_s: float) -> Ticket:
        """Leave for a request; waits where others go first. Raises `GatewayError` of 429 or 503."""

    def measured(self, *, kv: float, queue_s: float) -> None:
        """Takes over how full the replicas are: share of the KV cache in use, and seconds that requests wait there."""

    def figures(self) -> dict[str, Any]:
        """What its part of the gateway's event says."""


class Guards(Protocol):
    """What is let through."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Keeps them at work while the gateway serves."""

    async def prompt(self, caller: Caller, response_id: str, messages: Messages, param: str) -> None:
        """Raises `GatewayError` for a prompt that is not answered; `param` is the request's field that holds it."""

    def stream(self, caller: Caller, response_id: str, messages: Messages) -> TextGuard | None:
        """What watches one choice of an answer to these messages; None for nothing."""


class _Settled:
    priority = 0

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Nobody counts."""

    def cancel(self) -> None:
        """Nobody counts."""


class OneTenant:
    """Everybody who reaches the gateway is one tenant, without limits: for a gateway on loopback.

    Args:
      retention_days: for which conversations of requests that ask for it are kept; 0 keeps none.
    """

    def __init__(self, *, retention_days: int = 0) -> None:
        self._retention_days = retention_days

    def running(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Everybody; but no web page that has a name of its own lead here."""
        host = headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower() not in LOOPBACK:
            raise GatewayError(421, "the Host is not this server's address", code="invalid_host")
        return Caller("local", consents=self._retention_days > 0, retention_days=self._retention_days)

    def check_now(self, caller: Caller) -> None:
        return

    def check(self, caller: Caller, route: str, model: str) -> None:
        return

    async def admit(self, caller: Caller, ask: Ask, response_id: str, timeout_s: float) -> Ticket:
        return _Settled()

    def measured(self, *, kv: float, queue_s: float) -> None:
        return

    def figures(self) -> dict[str, Any]:
        return {}


class NoGuards:
    """Lets everything through."""

    def running(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def prompt(self, caller: Caller, response_id: str, messages: Messages, param: str) -> None:
        return

    def stream(self, caller: Caller, response_id: str, messages: Messages) -> TextGuard | None:
        return None
