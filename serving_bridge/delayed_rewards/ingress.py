"""Rewards over HTTP: what a webhook or another service sends, stored before it is answered.

    POST /v1/rewards    JSON lines with trajectory_id, reward, and perhaps reward_id and parts

All lines of a request are stored, or none. Its answer says what became of each, in order. A sender that saw no answer
sends the same again, which changes nothing. Every request has the token, also on loopback: a page in a browser there
could send rewards, too.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from learner_jax.contracts import ContractError
from learner_jax.runtime import WeirError
from serving_bridge.delayed_rewards.arrival import Arrival, read_arrival
from serving_bridge.delayed_rewards.ledger import Outcome

if TYPE_CHECKING:
    from aiohttp import web

#: Of one request.
MAX_BODY_BYTES = 2**20
MAX_REWARDS = 1000
#: Requests whose rewards are stored or wait for it; others are told to come back.
_MAX_WAITING = 64
_RETRY_S = 1

Bring = Callable[[Sequence[Arrival]], list[Outcome]]


class IngressError(WeirError, RuntimeError):
    """The address can't be had."""


class RewardIngress:
    """Takes rewards from `start` to `close`.

    Args:
      bring: stores rewards, durably when it returns; called in one thread.
      token: that senders have as `Authorization: Bearer ...`.
      log: told of requests that failed for a reason of our own.
    """

    def __init__(self, bring: Bring, *, host: str, port: int, token: str, log: Callable[[str], None] = print) -> None:
        self._bring, self._host, self._port, self._token, self._log = bring, host, port, token, log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weir-rewards")
        self._runner: web.AppRunner | None = None
        self._num_waiting = 0

    async def start(self) -> str:
        """Opens the port; returns the URL. Raises `IngressError`."""
        from aiohttp import web  # here: every queue imports this file, and few take rewards over HTTP

        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/rewards", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except (OSError, OverflowError, UnicodeError) as error:
            await self.close()
            raise IngressError(f"{self._host}:{self._port} can't be listened at: {error}") from error
        port = self._runner.addresses[0][1]
        shown = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{shown}:{port}"

    async def close(self) -> None:
        """Closes the port; requests in flight end."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._thread.shutdown(wait=False)

    async def _take(self, request: web.Request) -> web.Response:
        from aiohttp import web

        if not self._may_send(request):
            return _refused(401, "expected the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        try:
            arrivals = _read(await request.read())
        except web.HTTPRequestEntityTooLarge:
            return _refused(413, f"a body has at most {MAX_BODY_BYTES} bytes")
        except ContractError as error:
            return _refused(422, str(error))
        if self._num_waiting >= _MAX_WAITING:
            return _refused(503, "too many requests wait for the database", {"Retry-After": str(_RETRY_S)})
        self._num_waiting += 1
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._bring, arrivals)
        except WeirError as error:
            self._log(f"rewards could not be stored: {error}")
            return _refused(503, "the rewards could not be stored now", {"Retry-After": str(_RETRY_S)})
        finally:
            self._num_waiting -= 1
        return web.json_response({"outcomes": outcomes})

    def _may_send(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {self._token}".encode())


def _read(body: bytes) -> list[Arrival]:
    """The rewards in the lines of a body. Raises `ContractError` naming the first line that is none."""
    arrivals = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            arrivals.append(read_arrival(line))
        except ContractError as error:
            raise ContractError(f"line {number}: {error}") from error
        if len(arrivals) > MAX_REWARDS:
            raise ContractError(f"more than {MAX_REWARDS} rewards: send fewer in each request")
    if not arrivals:
        raise ContractError("the body holds no reward: expected JSON lines with trajectory_id and reward")
    return arrivals


def _refused(status: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    from aiohttp import web

    return web.json_response({"error": {"message": reason, "code": status}}, status=status, headers=headers)
