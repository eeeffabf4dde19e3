"""The simulated network between clients and engines: late, lost, doubled and reordered messages, and partitions."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from serving_bridge.access import FENCING_HEADER
from tools.testing.fake_vllm import Answer, Engine, EngineDiedError
from tools.testing.simulate.loop import Process, SimulatedLoop

_GENERATE = "/inference/v1/generate"
_SOON_S = 0.002


@dataclass
class Weather:
    """How bad the network is now; probabilities are per message.

    Attributes:
      late: that a message takes up to `late_s` instead of milliseconds.
      reset: that the connection breaks before a message arrives, which its sender learns.
      lost: that nobody learns of it.
      doubled: that a generation is carried out a second time, some time later. Never anything else: within one round a
        repeated control request can't be told from a new one; nothing that repeats requests may stand between
        controller and replicas.
      partitions: (client, engine) that can't reach each other.
    """

    late: float = 0.0
    late_s: float = 1.0
    reset: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    partitions: set[tuple[str, str]] = field(default_factory=set)


@dataclass
class Response:
    """As aiohttp's, as far as it is used."""

    status: int
    payload: bytes

    async def read(self) -> bytes:
        return self.payload


class Network:
    """Carries requests to engines by URL.

    Attributes:
      engines: URL -> (process, engine) of those that listen.
      sent: client -> URL -> answers that were asked for and have not come.
    """

    def __init__(self, loop: SimulatedLoop, draws: random.Random, trace: Callable[..., None]) -> None:
        self.engines: dict[str, tuple[Process, Engine]] = {}
        self.sent: dict[str, Counter[str]] = {}
        self.weather = Weather()
        self._loop, self._draws, self._trace = loop, draws, trace

    def session(self, client: Process) -> Session:
        self.sent[client.name] = Counter()
        return Session(self, client, self.sent[client.name])

    def send(
        self,
        client: Process,
        method: str,
        url: str,
        body: bytes | None,
        params: Mapping[str, str],
        fencing_token: int | None,
    ) -> _Exchange:
        base = url.removesuffix(_GENERATE)
        base, path = (base, _GENERATE) if base != url else (url.rpartition("/")[0], f"/{url.rpartition('/')[2]}")
        response: asyncio.Future[Response] = self._loop.create_future()
        exchange = _Exchange(client.name, base, method, path, body, dict(params), fencing_token, response)
        self._carry(exchange, lambda: self._arrive(exchange))
        if path == _GENERATE and self._happens(self.weather.doubled):
            self._loop.call_later_for_nobody(self._draws.uniform(0, 2.0), self._arrive, exchange)
        return exchange

    def hang_up(self, exchange: _Exchange) -> None:
        """The client closed the connection: a generation ends, anything else is carried out all the same."""
        if exchange.work is not None and exchange.path == _GENERATE:
            self._loop.call_later_for_nobody(_SOON_S, exchange.work.cancel)

    def _carry(self, exchange: _Exchange, deliver: Callable[[], None]) -> None:
        """One message on its way, in either direction."""
        if (exchange.client, exchange.engine) in self.weather.partitions or self._happens(self.weather.lost):
            return
        delay_s = _SOON_S
        if self._happens(self.weather.late):
            delay_s += self._draws.uniform(0, self.weather.late_s)
        if self._happens(self.weather.reset):
            self._loop.call_later_for_nobody(delay_s, exchange.fail, aiohttp.ServerDisconnectedError())
        else:
            self._loop.call_later_for_nobody(delay_s, deliver)

    def _arrive(self, exchange: _Exchange) -> None:
        process, engine = self.engines.get(exchange.engine, (None, None))
        if process is None or engine is None or not process.is_alive:
            exchange.fail(aiohttp.ServerDisconnectedError())
            return
        self._trace("request", exchange.client, exchange.engine, exchange.path)
        asked = engine.handle(exchange.method, exchange.path, exchange.body, exchange.params, exchange.fencing_token)
        work = process.spawn(asked)
        exchange.work = exchange.work or work

        def answered(task: asyncio.Task[Answer]) -> None:
            if task.cancelled():
                return
            error = task.exception()
            if isinstance(error, EngineDiedError):
                process.kill()
            if error is not None:
                self._carry(exchange, lambda: exchange.fail(aiohttp.ServerDisconnectedError()))
            else:
                status, payload = task.result()
                self._carry(exchange, lambda: exchange.answer(Response(status, payload)))

        self._loop.when_done(work, answered)
        self._loop.when_done(process.ended, lambda _: exchange.fail(aiohttp.ServerDisconnectedError()))

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._draws.random() < probability


@dataclass
class _Exchange:
    client: str
    engine: str
    method: str
    path: str
    body: bytes | None
    params: Mapping[str, str]
    fencing_token: int | None
    response: asyncio.Future[Response]
    work: asyncio.Task[Answer] | None = None

    def answer(self, response: Response) -> None:
        if not self.response.done():
            self.response.set_result(response)

    def fail(self, error: Exception) -> None:
        if not self.response.done():
            self.response.set_exception(error)


class _Parameters(msgspec.Struct):
    n: int = 1


class _Asked(msgspec.Struct):
    """How many answers a generation asks for."""

    sampling_params: _Parameters
    prompts: list[msgspec.Raw] | None = None

    @property
    def num_answers(self) -> int:
        return self.sampling_params.n * (1 if self.prompts is None else len(self.prompts))


class Session:
    """What `VllmClient` uses of an aiohttp session."""

    def __init__(self, network: Network, client: Process, sent: Counter[str]) -> None:
        self._network, self._client, self._sent = network, client, sent

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Nothing is held."""

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        allow_redirects: bool = False,
        timeout: Any = None,
    ) -> AsyncIterator[Response]:
        self._client.check()
        token = (headers or {}).get(FENCING_HEADER)
        exchange = self._network.send(
            self._client, method, url, data, params or {}, None if token is None else int(token)
        )
        weight = 0 if exchange.path != _GENERATE else msgspec.json.decode(data or b"{}", type=_Asked).num_answers
        self._sent[exchange.engine] += weight
        try:
            async with asyncio.timeout(timeout.total if timeout is not None else None):
                response = await exchange.response
        except BaseException:
            self._network.hang_up(exchange)
            raise
        finally:
            self._sent[exchange.engine] -= weight
        yield response
