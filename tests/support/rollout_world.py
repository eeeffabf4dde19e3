"""What tests of rollouts share: replicas behind a session without network, a small task, and time that only jumps."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import msgspec
import numpy as np

from rewards.contracts.task import Problem, RewardRequest, RewardResult, Split, scored
from serving_bridge.vllm_plugin import PackedAnswer, PackedChoice

T = TypeVar("T")
EOS = 1
VOCAB = 60
Reply = tuple[int, bytes]
#: what a scripted generation does: raises, or says status and body
Script = Callable[[dict[str, Any]], Reply | Awaitable[Reply]]


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time jumps to the next timer when nothing else is to be done."""

    now_s = 100.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now_s = max(self.now_s, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def virtually(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class Inline(Executor):
    """Runs at once, in the caller's thread."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except BaseException as error:  # noqa: BLE001  (as a pool does)
            future.set_exception(error)
        return future


class AdditionTask:
    """`7+5=`; an answer is right if its text is the sum."""

    version = "addition@1"

    def problem(self, split: Split, index: int) -> Problem:
        draw = random.Random(f"{split}/{index}")
        a, b = draw.randint(10, 99), draw.randint(10, 99)
        return Problem(index, f"{a}+{b}=", str(a + b), {})

    def num_distinct(self, split: Split) -> int | None:
        return None

    def target(self, problem: Problem) -> str:
        return problem.answer

    def score(self, request: RewardRequest) -> RewardResult:
        right = request.response.strip() == request.problem.answer
        return scored(float(right), {"right": float(right)}, reasons=(f"expected {request.problem.answer!r}",))

    def close(self) -> None:
        pass


def choice(
    tokens: list[int],
    finish_reason: str = "stop",
    *,
    index: int = 0,
    logprobs: list[Any] | None = None,
    spans: list[tuple[str, int, int]] | None = None,
) -> PackedChoice:
    """One answer as the plugin packs it; log-prob of a token is minus a hundredth of its id."""
    found = [-(token % 10_000) / 100 for token in tokens] if logprobs is None else logprobs
    return PackedChoice(
        index=index,
        finish_reason=finish_reason,
        tokens=np.array(tokens, "<i4").tobytes(),
        logprobs=np.array(found, "<f4").tobytes(),
        spans=[("1", 0, len(tokens))] if spans is None else spans,
    )


def reply(*choices: PackedChoice) -> Reply:
    return 200, msgspec.msgpack.encode(PackedAnswer(list(choices)))


def replies(*choices: PackedChoice) -> Reply:
    """One answer to each of several prompts."""
    return 200, msgspec.msgpack.encode([PackedAnswer([choice]) for choice in choices])


@dataclass
class FakeReplica:
    """Samples ids from 2 up by a seed.

    Attributes:
      token_s: time for a token.
      stop: chance that a token ends the answer.
      script: what the next generations do instead, first come first served.
      bodies: of the generations asked for.
      metrics: besides those of an idle server; None leaves one out.
    """

    seed: int = 0
    version: int = 1
    token_s: float = 0.001
    stop: float = 0.2
    eos: int = EOS
    script: list[Script] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    in_flight: int = 0
    _drawn: int = 0

    async def handle(self, route: str, body: dict[str, Any]) -> Reply:
        if route == "/metrics":
            idle = dict.fromkeys(
                ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"), 0.0
            )
            metrics = {name: value for name, value in (idle | self.metrics).items() if value is not None}
            return 200, "\n".join(f'vllm:{name}{{model="m"}} {value}' for name, value in metrics.items()).encode()
        assert route == "/inference/v1/generate", route
        self.bodies.append(body)
        if self.script:
            found = self.script.pop(0)(body)
            return found if isinstance(found, tuple) else await found
        parameters, prompts = body["sampling_params"], body.get("prompts")
        count = parameters["n"] * len(prompts or [()])
        self.in_flight += count
        try:
            answers = [self._sample(parameters) for _ in range(count)]
            await asyncio.sleep(self.token_s * max(len(answer) for answer in answers))
        finally:
            self.in_flight -= count
        if prompts is not None:
            return replies(*(self._choice(0, tokens) for tokens in answers))
        return reply(*(self._choice(index, tokens) for index, tokens in enumerate(answers)))

    def _choice(self, index: int, tokens: list[int]) -> PackedChoice:
        reason, spans = "stop" if tokens[-1] == self.eos else "length", [(str(self.version), 0, len(tokens))]
        return choice(tokens, reason, index=index, spans=spans)

    def _sample(self, parameters: dict[str, Any]) -> list[int]:
        self._drawn += 1
        draw = random.Random(f"{self.seed}/{self._drawn}")
        tokens = []
        while len(tokens) < parameters["max_tokens"]:
            tokens.append(self.eos if draw.random() < self.stop else draw.randrange(2, 40))
            if tokens[-1] == self.eos:
                break
        return tokens


class _Response:
    def __init__(self, status: int, payload: bytes) -> None:
        self.status = status
        self._payload = payload

    async def read(self) -> bytes:
        return self._payload


class FakeSession:
    """An aiohttp session as far as `VllmClient` uses one; URLs are `http://<name of a replica>`."""

    def __init__(self, replicas: dict[str, FakeReplica]) -> None:
        self._replicas = replicas

    def request(
        self, method: str, url: str, *, data: bytes | None = None, timeout: aiohttp.ClientTimeout, **_: Any
    ) -> AbstractAsyncContextManager[_Response]:
        return self._request(url, data, timeout)

    @asynccontextmanager
    async def _request(self, url: str, data: bytes | None, timeout: aiohttp.ClientTimeout) -> AsyncIterator[_Response]:
        name, _, route = url.removeprefix("http://").partition("/")
        if name not in self._replicas:
            raise aiohttp.ClientConnectionError(f"Cannot connect to {name}")
        async with asyncio.timeout(timeout.total):
            yield _Response(*await self._replicas[name].handle(f"/{route}", json.loads(data) if data else {}))


def session_factory(replicas: dict[str, FakeReplica]) -> Callable[[], AbstractAsyncContextManager[FakeSession]]:
    @asynccontextmanager
    async def open_session() -> AsyncIterator[FakeSession]:
        yield FakeSession(replicas)

    return open_session
