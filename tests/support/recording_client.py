"""A replica's client without a replica: it notes what a weight round asks of it, and answers as a sound one would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from learner_jax.contracts import WeightManifest
from serving_bridge.vllm import Swapped, WorkerStatus


class RecordingClient:
    """Serves version 1, named so, until it is updated.

    Args:
      logprobs: of golden prompts, by the number of the prompt's tokens.
      is_applied: it holds the version that it is asked to stage, and nothing has proven it.
      probe_s: what a probe takes, by the loop's clock.

    Attributes:
      asked: what was asked, in order.
    """

    base_url = "http://replica"

    def __init__(self, logprobs: dict[int, Sequence[float]], *, is_applied: bool = False, probe_s: float = 0.0) -> None:
        self.asked: list[str] = []
        self.is_held, self.named, self.applied = False, 1, 1
        self._logprobs, self._is_applied, self._probe_s = logprobs, is_applied, probe_s
        self._staged: int | None = None

    def control(self) -> RecordingClient:
        return self

    async def stage(
        self, version: int, content_sha256: str, round_id: str, lease_s: float, *, sealed: str = ""
    ) -> WorkerStatus:
        self.asked.append("stage")
        self._staged = version
        self.applied = version if self._is_applied else self.applied
        return self._status()

    async def worker_status(self, round_id: str = "") -> WorkerStatus:
        return self._status()

    async def is_paused(self) -> bool:
        return self.is_held

    async def num_requests(self) -> int:
        return 0

    async def start_update(self) -> None:
        self.asked.append("start update")

    async def swap(self, manifest: WeightManifest, round_id: str, *, applies: bool) -> Swapped:
        self.asked.append("swap" if applies else "prove")
        self.is_held, self.named, self.applied = True, -1, manifest.version
        await asyncio.sleep(self._probe_s)
        found = [np.array(self._logprobs[len(prompt.tokens)], np.float32) for prompt in manifest.golden]
        return Swapped(True, "", found, self._probe_s)

    async def serve(self, version: int) -> None:
        self.asked.append(f"serve {version}")
        self.named, self.is_held = version, False

    async def weight_version(self) -> int | None:
        return self.named if self.named >= 0 else None

    async def resume(self) -> None:
        self.asked.append("resume")
        self.is_held = False

    async def abort_all(self) -> None:
        self.asked.append("abort")

    async def release(self, round_id: str) -> None:
        self.asked.append("release")

    def _status(self) -> WorkerStatus:
        state, staged = ("applied", None) if self._is_applied else ("staged", self._staged)
        return WorkerStatus(state, staged, "", damaged=False, applied=self.applied, intact=True)
