"""One process of the gateway: it listens, follows its replicas, tells what it does, and drains at its end."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import uvicorn

from learner_jax.runtime import WeirError
from serving_bridge.access import Keys
from serving_bridge.confidence import Calibration
from serving_bridge.fallback import Library, Records, Webhook
from serving_bridge.feedback import FeedbackStore
from serving_bridge.gateway.application import application
from serving_bridge.gateway.arms import Arms, Split
from serving_bridge.gateway.callers import LOOPBACK, Admission, Guards, NoGuards, OneTenant
from serving_bridge.gateway.connections import protocol_class
from serving_bridge.gateway.counts import Counts
from serving_bridge.gateway.falling_back import FallingBack
from serving_bridge.gateway.judging import Judge
from serving_bridge.gateway.mirror import Mirror
from serving_bridge.gateway.observations import NoObservations, Observations
from serving_bridge.gateway.parts import Parts
from serving_bridge.gateway.prompts import Prompts
from serving_bridge.gateway.recording import Recorders
from serving_bridge.gateway.replicas import Load, Replicas, Target
from serving_bridge.gateway.service import Answering, Service
from serving_bridge.gateway.stand_ins import Means
from serving_bridge.gateway.upstream import client_session
from serving_bridge.recordings import Recorder
from serving_bridge.routing import ReplicaRegistry, ReplicaRow
from serving_bridge.settings import FallbackSettings, GatewaySettings
from serving_bridge.text import Tokenizer
from serving_bridge.vllm import ReplicaError, VllmClient

_REGISTRY_EVERY_S = 0.5
_SPLIT_EVERY_S = 0.5
_LOOK_EVERY_S, _LOOK_TIMEOUT_S = 1.0, 2.0
_TELL_EVERY_S = 1.0
_STOP_POLL_S = 0.1
_KEEP_ALIVE_S = 75
_BACKLOG = 2048

Log = Callable[..., None]


class ListenError(WeirError, OSError):
    """The gateway's address can't be listened at."""


class TenantsError(WeirError, ValueError):
    """A gateway that everybody could reach has nobody who says who may ask."""

    can_heal = False


@dataclass(frozen=True)
class Fallback:
    """What a process falls back on, as its settings name it; None for what they don't.

    Attributes:
      previous: replicas of an older version, and the keys of their tokens.
    """

    settings: FallbackSettings
    calibration: Calibration | None = None
    library: Library | None = None
    webhook: Webhook | None = None
    records: Records | None = None
    previous: tuple[ReplicaRegistry, Keys] | None = None


class Gateway:
    """One process of the gateway.

    Args:
      name: unique among the run's processes that ask replicas; the fleet's controller is told by it.
      max_context: tokens of prompt and answer together.
      log: takes an event's name and its fields.
      admission: None for one tenant without limits, on loopback alone.
      read_split: reads how arms are dealt out, and may block; raises `WeirError` where that can't be read now, and the
        last split stays. None where the replicas follow the newest version.
      observations: who is told of every request that an arm answered.
      recorder: keeps conversations of those who consent; None keeps nothing.
      fallback: None for errors where the model can't answer.
      feedback: takes what is said of them.

    Attributes:
      ready: whether it listens, knows a replica that takes requests, and does not drain.

    Raises:
      TenantsError: there is no admission, and others than this machine can reach `settings.host`.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        tokenizer: Tokenizer,
        registry: ReplicaRegistry,
        keys: Keys,
        *,
        name: str,
        max_context: int,
        log: Log,
        should_stop: Callable[[], bool],
        admission: Admission | None = None,
        guards: Guards | None = None,
        read_split: Callable[[], Split] | None = None,
        observations: Observations | None = None,
        recorder: Recorder | None = None,
        fallback: Fallback | None = None,
        feedback: FeedbackStore | None = None,
    ) -> None:
        if admission is None and (settings.require_keys or settings.host not in LOOPBACK):
            raise TenantsError(
                f"gateway.host is {settings.host!r}, where others reach it, and everybody may ask; set "
                f"gateway.require_keys to true (keys are made by tools.tenants), or gateway.host to 127.0.0.1"
            )
        self._settings, self._tokenizer, self._registry = settings, tokenizer, registry
        self._name, self._max_context, self._log, self._should_stop = name, max_context, log, should_stop
        days = recorder.retention_days if recorder is not None else 0
        self._admission, self._guards = admission or OneTenant(retention_days=days), guards or NoGuards()
        self._recorder, self._feedback = recorder, feedback
        self._read_split, self._observations = read_split, observations or NoObservations()
        self._replicas = Replicas(keys, time.monotonic)
        self._fallback = fallback
        self._older = _Older(*fallback.previous) if fallback is not None and fallback.previous is not None else None
        self._arms, self._split_error = Arms(), ""
        self._counts = Counts()
        self.ready = False

    async def run(self, listener: socket.socket) -> None:
        """Serves until `should_stop`; answers in flight then get `gateway.drain_timeout_s`.

        Raises:
          AccessError: the key of the replicas' tokens can't be read.
          WeirError: the first split can't be read.
        """
        if self._read_split is not None:
            self._arms.take_over(await asyncio.to_thread(self._read_split))
        async with client_session() as session:
            parts = Parts(
                settings=self._settings,
                tokenizer=self._tokenizer,
                prompts=Prompts(self._tokenizer, max_context=self._max_context),
                replicas=self._replicas,
                session=session,
                admission=self._admission,
                guards=self._guards,
                arms=self._arms,
                counts=self._counts,
                observations=self._observations,
                recorders=Recorders(self._recorder),
                feedback=self._feedback,
            )
            self._replicas.update(self._rows())
            mirror = Mirror(parts)
            server = _server(*self._answering(parts, mirror))
            loops_ = self._follow(), self._look(session), self._tell(), *self._more_loops()
            recording = self._recorder.running() if self._recorder is not None else nullcontext()
            async with self._admission.running(), self._guards.running(), recording, _background(*loops_) as loops:
                serving = asyncio.ensure_future(server.serve(sockets=[listener]))
                while not serving.done() and not self._should_stop():
                    await asyncio.wait([serving, *loops], timeout=_STOP_POLL_S, return_when=asyncio.FIRST_COMPLETED)
                    for loop in loops:
                        if loop.done():
                            loop.result()
                self.ready = False
                server.should_exit = True
                await serving  # bounded by gateway.drain_timeout_s
                await mirror.close()
            self._log("gateway", **self._figures())

    def _answering(self, parts: Parts, mirror: Mirror) -> tuple[Parts, Answering]:
        """What answers: the replicas, and what stands in for them."""
        fallback, older = self._fallback, self._older
        if fallback is None:
            return parts, Service(parts, mirror)
        judge = Judge(fallback.settings, fallback.calibration)
        parts = replace(parts, wants_logprobs=judge.wants_logprobs)
        means = Means(
            settings=fallback.settings,
            judge=judge,
            service=Service(parts, mirror),
            previous=Service(replace(parts, replicas=older.replicas, arms=Arms()), mirror) if older else None,
            library=fallback.library,
            webhook=fallback.webhook,
            session=parts.session,
            guards=parts.guards,
        )
        return parts, FallingBack(means, parts.counts, fallback.records)

    async def _follow(self) -> None:
        """Keeps the list of replicas. One that can't be read now is read again."""
        while True:
            with suppress(OSError):
                self._replicas.update(await asyncio.to_thread(self._rows))
                if self._older is not None:
                    self._older.replicas.update(await asyncio.to_thread(self._older.registry.ready))
            self.ready = bool(self._replicas.targets) and not self._should_stop()
            await asyncio.sleep(_REGISTRY_EVERY_S)

    def _rows(self) -> list[ReplicaRow]:
        return self._registry.ready() if self._read_split is None else self._registry.usable()

    def _more_loops(self) -> list[Coroutine[Any, Any, None]]:
        return [] if self._read_split is None else [self._follow_split(self._read_split)]

    async def _follow_split(self, read: Callable[[], Split]) -> None:
        """Keeps the split. One that can't be read now is read again, and the last one stays in force."""
        while True:
            await asyncio.sleep(_SPLIT_EVERY_S)
            try:
                split = await asyncio.to_thread(read)
            except (WeirError, OSError) as error:
                if (said := str(error)) != self._split_error:
                    self._log("split_unread", error=said)
                self._split_error = said
                continue
            self._split_error = ""
            if split != self._arms.split:
                self._arms.take_over(split)
                self._log("split", stable=split.stable, canary=split.canary, canary_share=split.canary_share)

    async def _look(self, session: aiohttp.ClientSession) -> None:
        """Asks the replicas how busy they are."""

        async def look(target: Target) -> None:
            with suppress(ReplicaError):
                client = VllmClient(target.url, session, token=target.token)
                found = await client.metrics(timeout_s=_LOOK_TIMEOUT_S)
                self._replicas.looked(target, Load.of_metrics(found))

        while True:
            await asyncio.gather(*map(look, self._replicas.targets))  # each has a timeout
            if (pressure := self._replicas.pressure()) is not None:
                self._admission.measured(kv=pressure.kv_usage, queue_s=pressure.queue_s)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _tell(self) -> None:
        """Writes the figures, and tells the fleet's controller which requests failed."""
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            with suppress(OSError):
                await asyncio.to_thread(self._written, self._figures(), dict(self._replicas.totals()))

    def _written(self, figures: dict[str, Any], totals: dict[str, tuple[int, int]]) -> None:
        self._log("gateway", **figures)
        self._registry.report_requests(self._name, totals)

    def _figures(self) -> dict[str, Any]:
        kept = self._recorder.figures() if self._recorder is not None else {}
        return {**self._counts.taken(), "replicas": len(self._replicas.targets), **self._admission.figures(), **kept}


class _Older:
    """Replicas of an older version, as this process knows them."""

    def __init__(self, registry: ReplicaRegistry, keys: Keys) -> None:
        self.registry, self.replicas = registry, Replicas(keys, time.monotonic)
        self.replicas.update(registry.ready())


@contextmanager
def listener(host: str, port: int, *, shared: bool) -> Iterator[socket.socket]:
    """A bound socket.

    Args:
      shared: whether further processes bind the same port (SO_REUSEPORT); the kernel deals connections out.

    Raises:
      ListenError: the address can't be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _not_bound(host, port, error) from None
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            bound.bind(address)
        except OSError as error:
            raise _not_bound(host, port, error) from None
        bound.setblocking(False)
        yield bound


def _not_bound(host: str, port: int, error: OSError) -> ListenError:
    return ListenError(
        f"the gateway can't listen at {host} port {port}: {error.strerror or error}; set gateway.host to an address "
        f"of this machine and gateway.port to a free port, or to 0 for any"
    )


class _Server(uvicorn.Server):
    """Signals are the process's own matter."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(parts: Parts, service: Answering) -> _Server:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # its words hold nothing, for each bad connection
    settings = parts.settings
    config = uvicorn.Config(
        application(parts, service),
        http=protocol_class(settings.max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, math.ceil(settings.drain_timeout_s)),
        backlog=_BACKLOG,
    )
    return _Server(config)


@asynccontextmanager
async def _background(*loops: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
