"""What a user asks and waits for, and what disturbs: a neighbour, rollouts, a learner."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tools.bench import BenchmarkError
from tools.bench.gateway.deployment import on_core
from tools.bench.learner import Shape, uniform

_REQUEST_S = 120.0
_PROMPT = "Once upon a time there was a fox and a dog"
#: of a learner that is killed again and again: it compiles most of the time
_LIFE_S = 5.0
_ROLLOUT_TOKENS = 64


@dataclass(frozen=True)
class Place:
    """Where requests go.

    Attributes:
      url: up to /v1, of the gateway.
      eos: token id that no answer may sample, so that all are equally long.
    """

    url: str
    eos: int


@dataclass
class Heard:
    """Seconds of each answer of a user, and how many requests ended with which status."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


async def asking(
    session: aiohttp.ClientSession, place: Place, key: str, *, per_second: float, tokens: int, for_s: float, seed: int
) -> Heard:
    """Requests of one tenant at random moments, however long the answers take; all are waited for."""
    heard, draws, end_s = Heard(), random.Random(seed), time.monotonic() + for_s
    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            await asyncio.sleep(draws.expovariate(per_second))
            if time.monotonic() > end_s:
                break
            group.create_task(_one(session, place, key, tokens, f"{_PROMPT} {seed} {number}", heard))
    return heard


async def _one(session: aiohttp.ClientSession, place: Place, key: str, tokens: int, prompt: str, heard: Heard) -> None:
    body = {"model": "policy", "prompt": prompt, "max_tokens": tokens, "logit_bias": {str(place.eos): -100}}
    headers = {"Authorization": f"Bearer {key}"}
    began_s = time.perf_counter()
    async with (
        asyncio.timeout(_REQUEST_S),
        session.post(f"{place.url}/completions", json=body, headers=headers) as response,
    ):
        await response.read()
        heard.statuses[response.status] += 1
        if response.status == 200:
            heard.seconds.append(time.perf_counter() - began_s)


@asynccontextmanager
async def rollouts(
    session: aiohttp.ClientSession, replica: Callable[[], tuple[str, str]], *, at_once: int, priority: int, eos: int
) -> AsyncIterator[list[int]]:
    """Answers sampled for training beside users', as the rollout worker asks for them.

    Args:
      replica: address and token of the replica.
      at_once: answers in flight.

    Yields:
      The tokens of each answer that has ended.
    """
    numbers, ended = itertools.count(), list[int]()

    async def worker() -> None:
        while True:
            url, token = replica()
            asked = {"max_tokens": _ROLLOUT_TOKENS, "temperature": 1.0, "logprobs": 0, "logit_bias": {str(eos): -100}}
            body: dict[str, Any] = {"request_id": f"bench-{next(numbers)}", "token_ids": list(range(3, 35))}
            body |= {"sampling_params": asked, "stream": False, "priority": priority}
            headers = {"Authorization": f"Bearer {token}"}
            async with session.post(f"{url}/inference/v1/generate", json=body, headers=headers) as response:
                if response.status != 200:
                    raise BenchmarkError(f"the replica answered {response.status}: {(await response.text())[:300]}")
                await response.read()
            ended.append(_ROLLOUT_TOKENS)

    workers = [asyncio.ensure_future(worker()) for _ in range(at_once)]
    try:
        await asyncio.sleep(0.5)
        ended.clear()
        yield ended
    finally:
        for task in workers:
            task.cancel()
        for end in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(end, Exception) and not isinstance(end, asyncio.CancelledError):
                raise end


class Learner:
    """A learner's GRPO steps without end, in a process on one core; stopped while it is not wanted.

    Args:
      folder: for its batch and its output.
    """

    def __init__(self, folder: Path, core: int) -> None:
        self._folder, self._core = folder, core
        self._shape = Shape()
        uniform(self._shape.vocab, 0).write(folder / "batch.npz")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, or lets it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            return
        module = "tools.bench.learner.worker"
        words = ["--batch", str(self._folder / "batch.npz"), "--core", str(self._core), "--steps", "1000000"]
        with (self._folder / "learner.log").open("ab") as log, on_core(self._core):
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *words, *self._shape.flags()], stdout=log, stderr=log
            )

    def check(self) -> None:
        """Raises `BenchmarkError` if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            log = (self._folder / "learner.log").read_text()
            raise BenchmarkError(f"the learner has ended:\n{log[-2000:]}")

    def pause(self) -> None:
        """Takes its core away until `start`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """At full load."""
        self.start()
        try:
            yield
            self.check()
        finally:
            self.pause()

    @asynccontextmanager
    async def restarting(self) -> AsyncIterator[None]:
        """Killed and started again every five seconds."""

        is_over = asyncio.Event()

        async def again() -> None:
            while not is_over.is_set():
                await asyncio.to_thread(self.kill)  # waits for the system, and must not make the user late
                await asyncio.to_thread(self.start)
                with suppress(TimeoutError):
                    await asyncio.wait_for(is_over.wait(), _LIFE_S)

        task = asyncio.ensure_future(again())
        try:
            yield
        finally:
            is_over.set()
            await task
            self.kill()
