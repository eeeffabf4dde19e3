"""What speaks for and against a replica: health checks, signs that its engine samples, and how requests to it end.

Health and requests are counted apart. A server that answers /health may still sample nothing, and one that samples may
fail what rollout workers ask of it; each has its own remedy.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving_bridge.settings import ServingSettings
from serving_bridge.vllm import ReplicaError

_HEALTH_TIMEOUT_S = 5.0
#: prompt whose log-prob shows that the engine runs; any two tokens do
_SIGN_OF_LIFE = (0, 0)
#: ahead of every sampling request where the server is full
_PRIORITY = -1
_TOKENS_SEEN = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")
#: requests fail too often when this many, and more than succeeded, failed within the window
_MIN_FAILED_REQUESTS = 5
_REQUEST_WINDOW_S = 10.0


class Checked(Protocol):
    """What is asked of a replica; `VllmClient` does it."""

    async def is_healthy(self, timeout_s: float = 5.0) -> bool: ...

    async def metrics(self) -> Mapping[str, float]: ...

    async def weight_version(self) -> int | None: ...

    async def prompt_logprobs(
        self, token_ids: Sequence[int], *, timeout_s: float, priority: int = 0, request_id: str | None = None
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Verdict:
    """What to think of a replica now.

    Attributes:
      dead: why it must be restarted, or empty.
      suspect: why it had better not be used, or empty.
    """

    dead: str = ""
    suspect: str = ""


class Health:
    """The evidence about one replica since its process started; times are the event loop's."""

    def __init__(self, settings: ServingSettings, now_s: float):
        self._settings = settings
        self.began(now_s)

    def began(self, now_s: float) -> None:
        """A process has just started, and answered while it warmed up."""
        self._failed_checks = 0
        self._answered_s = self._sampled_s = now_s
        self._tokens: float | None = None
        self._totals: deque[tuple[float, int, int]] = deque()

    async def check(self, replica: Checked) -> None:
        """One health check, bounded."""
        if await replica.is_healthy(timeout_s=min(_HEALTH_TIMEOUT_S, self._settings.hang_s / 4)):
            self._failed_checks, self._answered_s = 0, asyncio.get_running_loop().time()
        else:
            self._failed_checks += 1

    async def check_sampling(self, replica: Checked) -> None:
        """Looks for a sign, bounded, that the engine runs: tokens that it counted, else a probe of its own.

        A probe alone would not do: where the server is full of long answers it waits as they do.
        """
        bound_s = self._settings.hang_s / 4
        try:
            async with asyncio.timeout(bound_s):
                metrics = await replica.metrics()
            before, self._tokens = self._tokens, sum(metrics.get(name, 0.0) for name in _TOKENS_SEEN)
            if before is None or self._tokens == before:
                await replica.prompt_logprobs(_SIGN_OF_LIFE, timeout_s=bound_s, priority=_PRIORITY)
        except (ReplicaError, TimeoutError):
            return
        self._sampled_s = asyncio.get_running_loop().time()

    def round_ended(self, now_s: float, *, sampled: bool) -> None:
        """A weight round is over; while it lasted nobody looked whether the engine runs."""
        self._sampled_s = now_s if sampled else max(self._sampled_s, now_s - self._settings.hang_s / 2)

    def count_requests(self, succeeded: int, failed: int, now_s: float) -> None:
        """Takes the workers' totals of now; smaller ones than before mean that a worker began anew."""
        if self._totals and (succeeded < self._totals[-1][1] or failed < self._totals[-1][2]):
            self._totals.clear()
        self._totals.append((now_s, succeeded, failed))
        while now_s - self._totals[0][0] > _REQUEST_WINDOW_S:
            self._totals.popleft()

    def forget_requests(self) -> None:
        """What failed so far no longer counts: something was done about it."""
        while len(self._totals) > 1:
            self._totals.popleft()

    def failed_requests(self) -> str:
        """Why the replica's requests are a reason to suspect it, or empty."""
        if not self._totals:
            return ""
        succeeded, failed = (self._totals[-1][at] - self._totals[0][at] for at in (1, 2))
        if failed < max(_MIN_FAILED_REQUESTS, succeeded + 1):
            return ""
        return f"{failed} requests failed and {succeeded} succeeded in {_REQUEST_WINDOW_S:g} s"

    def judge(self, now_s: float, *, in_round: bool) -> Verdict:
        """The verdict by health checks and sampling; in a round, which has bounds of its own, sampling is no matter."""
        hang_s = self._settings.hang_s
        if self._failed_checks and now_s - self._answered_s >= hang_s:
            return Verdict(
                dead=f"no answer to /health for {now_s - self._answered_s:.0f} s (serving.hang_s = {hang_s:g})"
            )
        if not in_round and now_s - self._sampled_s >= hang_s:
            return Verdict(dead=f"samples nothing since {now_s - self._sampled_s:.0f} s (serving.hang_s = {hang_s:g})")
        if self._failed_checks >= self._settings.suspect_after:
            return Verdict(suspect=f"{self._failed_checks} health checks in a row failed")
        return Verdict()
