"""A vLLM server as the fleet controller sees it, without a process of the machine: real rounds, simulated engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from learner_jax.contracts import WeightManifest
from learner_jax.runtime import Waits
from serving_bridge.fleet import RoundOutcome, run_round
from serving_bridge.settings import ServingSettings
from serving_bridge.vllm import ReplicaError, ReplicaStartError, VllmClient
from tools.testing.simulate.loop import Process
from tools.testing.simulate.network import Session


class SimulatedServer:
    """A server that the fleet controller may start and end; implements `serving_bridge.fleet.member.Server`.

    Args:
      session: of the controller.
      bad_start: probability that a start fails.
      start_engine: makes the process, by name; gives it and its URL.
    """

    def __init__(
        self,
        name: str,
        *,
        settings: ServingSettings,
        session: Session,
        waits: Waits,
        draws: random.Random,
        bad_start: Callable[[], float],
        start_engine: Callable[[str], tuple[Process, str]],
    ) -> None:
        self.name = name
        self._settings, self._session, self._waits = settings, session, waits
        self._draws, self._bad_start, self._start_engine = draws, bad_start, start_engine
        self._process: Process | None = None
        self._client: VllmClient | None = None

    @property
    def client(self) -> VllmClient:
        if self._client is None:
            raise ReplicaError(f"{self.name} was never started")
        return self._client

    @property
    def base_url(self) -> str:
        return self.client.base_url

    @property
    def start_id(self) -> str:
        """Simulated servers ask for no tokens."""
        return ""

    def exit_status(self) -> int | None:
        return None if self._process is not None and self._process.is_alive else 1

    async def start(self) -> None:
        await asyncio.sleep(self._draws.uniform(0.1, 0.5))
        if self._draws.random() < self._bad_start():
            raise ReplicaStartError(f"{self.name} did not start on purpose")
        self._process, url = self._start_engine(self.name)
        self._client = VllmClient(url, self._session, control_timeout_s=self._settings.update_timeout_s)

    async def update(self, store: Any, manifest: WeightManifest, *, round_id: str) -> RoundOutcome:
        options: dict[str, Any] = dict(round_id=round_id, waits=self._waits, name=self.name)
        return await run_round(self.client, manifest, self._settings, **options)

    async def drain(self) -> bool:
        return True

    async def stop(self) -> None:
        await self.kill()

    async def kill(self) -> None:
        self.end()
        await asyncio.sleep(0.05)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
