"""A fleet controller over servers that do what the test says, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from learner_jax.contracts.weights import GoldenPrompt, WeightManifest
from learner_jax.runtime.waits import Waits
from serving_bridge.fleet.controller import Fleet
from serving_bridge.fleet.follower import Follower
from serving_bridge.fleet.member import Member
from serving_bridge.fleet.weight_round import RoundOutcome
from serving_bridge.routing.registry import ReplicaRegistry
from serving_bridge.settings.serving import ServingSettings
from serving_bridge.vllm.client import Malformed, Unreachable
from serving_bridge.vllm.server_checks import ReplicaStartError
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.support.virtual_time import inline

TENSORS = {"a": np.ones(3, np.float32)}
START_S = 2.0
ROUND_S = 0.5
#: what the controller's own ticks and files may add to any time
SLACK_S = 1.0


class StubServer:
    """A server without a process. As a client it answers, or hangs, as its attributes say.

    Attributes:
      by_hand: rounds end only when the test sets `outcome`; else after `ROUND_S`, as `outcomes` says, else updated.
      named: version that its weights say they are.
      history: what the controller asked of it, with times.
    """

    def __init__(self, name: str, port: int) -> None:
        self.name, self.port, self.base_url, self.start_id = name, port, f"http://{name}", ""
        self.client = self
        self.status: int | None = 0
        self.answers = True
        self.samples = True
        self.garbles = False
        self.start_error = ""
        self.by_hand = False
        self.outcomes: list[str] = []
        self.outcome: asyncio.Future[dict[str, Any]] | None = None
        self.asked: list[int] = []
        self.round_ids: set[str] = set()
        self.in_flight_s = 0.0
        self.named: int | None = None
        self.history: list[tuple[str, float]] = []

    def _did(self, what: str) -> None:
        self.history.append((what, asyncio.get_running_loop().time()))

    def did(self, what: str) -> list[float]:
        return [at_s for name, at_s in self.history if name == what]

    def exit_status(self) -> int | None:
        return self.status

    async def start(self) -> None:
        self._did("start")
        await asyncio.sleep(START_S)
        if self.start_error:
            raise ReplicaStartError(self.start_error)
        self.status, self.answers, self.samples, self.garbles, self.named = None, True, True, False, None

    async def update(self, store: WeightStore, manifest: WeightManifest, *, round_id: str) -> RoundOutcome:
        self.asked.append(manifest.version)
        self.round_ids.add(round_id)
        if not self.by_hand:
            await asyncio.sleep(ROUND_S)
            status: Any = self.outcomes.pop(0) if self.outcomes else "updated"
            if status == "garbage":
                raise Malformed("its answer can't be read")
            self.named = manifest.version if status == "updated" else self.named
            return RoundOutcome(version=manifest.version, status=status, error=None if status == "updated" else "why")
        self.outcome = asyncio.get_running_loop().create_future()
        outcome = RoundOutcome(version=manifest.version, **await self.outcome)
        self.named = manifest.version if outcome.status == "updated" else self.named
        return outcome

    async def drain(self) -> bool:
        self._did("drain")
        await asyncio.sleep(self.in_flight_s)
        return True

    async def stop(self) -> None:
        self._did("stop")
        self.status = 0

    async def kill(self) -> None:
        self._did("kill")
        self.status = 137 if self.status is None else self.status

    async def is_healthy(self, timeout_s: float = 5.0) -> bool:
        if not self.answers:
            await asyncio.sleep(timeout_s)
        return self.answers

    async def weight_version(self) -> int | None:
        return self.named

    async def metrics(self) -> Mapping[str, float]:
        if self.garbles:
            raise Malformed("its metrics can't be read")
        return {"vllm:generation_tokens_total": 0.0}

    async def prompt_logprobs(
        self, token_ids: Sequence[int], *, timeout_s: float, priority: int = 0, request_id: str | None = None
    ) -> np.ndarray:
        if not (self.samples and self.answers):
            await asyncio.sleep(timeout_s)
            raise Unreachable("no answer")
        return np.zeros(len(token_ids) - 1, np.float32)


class StubFleet:
    """A running fleet, its servers by name, and what it logged."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "host",
        prepare: Callable[[StubServer], None] = lambda server: None,
        make_follower: Callable[[Callable[..., None]], Follower] | None = None,
        **settings: Any,
    ):
        self.store = WeightStore(folder / "weights", "run")
        self.events: list[dict[str, Any]] = []
        self.servers: dict[str, StubServer] = {}
        self.stop = False
        self._prepare = prepare
        self.registry = ReplicaRegistry(folder / "replicas", clock=self.time)

        def log(event: str, **fields: Any) -> None:
            self.events.append({"event": event, **fields})

        self.fleet = Fleet(
            ServingSettings(max_model_len=8, **settings),
            model_dir=folder,
            store=self.store,
            registry=self.registry,
            log_dir=folder,
            keep_versions=8,
            log=log,
            should_stop=lambda: self.stop,
            name=name,
            follower=make_follower(log) if make_follower is not None else None,
            make_replica=self._make,
            open_session=lambda: nullcontext(None),
            run_blocking=inline,
            waits=Waits(self.time),
            clock=self.time,
        )

    @staticmethod
    def time() -> float:
        return asyncio.get_running_loop().time()

    def _make(self, name: str, port: int) -> StubServer:
        self.servers[name] = StubServer(name, port)
        self._prepare(self.servers[name])
        return self.servers[name]

    @property
    def members(self) -> list[Member]:
        return self.fleet.members

    def states(self) -> dict[str, str]:
        """What rollout workers see."""
        return {row.name: row.state for row in self.registry.replicas()}

    def publish(self) -> WeightManifest:
        return VersionWriter(self.store).publish(TENSORS.items(), step=0, golden=[GoldenPrompt([1, 2], [-1.0])])

    def named(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.events if record["event"] == event]

    async def until(self, holds: Callable[[], object], within_s: float) -> float:
        """Lets virtual time pass until something holds; how long that took."""
        started = self.time()
        while not holds():
            if self.task.done():
                self.task.result()
            assert self.time() - started < within_s, (self.states(), self.events[-5:])
            await asyncio.sleep(0.05)
        return self.time() - started

    async def until_healthy(self, *names: str, within_s: float = 60.0) -> float:
        return await self.until(lambda: all(self.states().get(name) == "healthy" for name in names), within_s)

    async def end(self, server: int, status: str = "updated", **fields: Any) -> None:
        """Ends a round that is held by hand."""
        outcome = self.servers[f"host-{server}"].outcome
        assert outcome is not None
        outcome.set_result({"status": status, **fields})
        await asyncio.sleep(0.1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[StubFleet]:
        self.task = asyncio.create_task(self.fleet.run())
        try:
            yield self
        finally:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
