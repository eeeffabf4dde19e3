"""Streams of chat at a time, and what each took: time to the first token, time of each further one, processor."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from tools.bench import BenchmarkError
from tools.bench.gateway.sides import Side

_REQUEST_S = 300.0
_HEADERS = {"Authorization": "Bearer sk-benchmark", "Content-Type": "application/json"}


@dataclass(frozen=True)
class Figures:
    """One side under one load.

    Attributes:
      first_ms: time to the first token of each request.
      each_ms: time between tokens of each request, on average.
      cpu_ms: CPU of the side's processes for a request; 0 for the engine alone.
      text: of the answers, which all say the same.
    """

    first_ms: tuple[float, ...]
    each_ms: tuple[float, ...]
    cpu_ms: float
    text: str


async def drive(side: Side, *, requests: int, streams: int, tokens: int, pause_ms: float = 0.0) -> Figures:
    """Sends requests by so many clients, each with one at a time.

    Args:
      pause_ms: mean time for which a client waits before each request, exponentially distributed. Without it all
        clients begin at once, and since all answers take equally long, they go on asking at once.

    Raises:
      BenchmarkError: an answer is refused, or not like the others.
    """
    numbers, pauses, found = iter(range(requests)), random.Random(0), []
    cpu_s = side.cpu_s()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            for number in numbers:
                if pause_ms > 0:
                    await asyncio.sleep(pauses.expovariate(1000 / pause_ms))
                async with asyncio.timeout(_REQUEST_S):
                    found.append(await _streamed(session, side, number, tokens))

        await asyncio.gather(*(client() for _ in range(min(streams, requests))))
    cpu_ms = 1000 * (side.cpu_s() - cpu_s) / requests
    texts = {text for _, _, text in found}
    if len(texts) != 1:
        raise BenchmarkError(f"{side.name} gave {len(texts)} different answers to requests for the same")
    return Figures(tuple(one[0] for one in found), tuple(one[1] for one in found), cpu_ms, texts.pop())


async def _streamed(session: aiohttp.ClientSession, side: Side, number: int, tokens: int) -> tuple[float, float, str]:
    messages = [
        {"role": "system", "content": "You answer in one long sentence, and you never refuse."},
        {"role": "user", "content": f"Tell me a story of a fox and a dog, number {number}, with a good end."},
    ]
    body = json.dumps({"model": "policy", "messages": messages, "stream": True, "max_tokens": tokens}).encode()
    began_s = time.perf_counter()
    first_s = last_s = 0.0
    parts: list[str] = []
    async with session.post(f"{side.url}/v1/chat/completions", data=body, headers=_HEADERS) as response:
        if response.status != 200:
            raise BenchmarkError(f"{side.name} answered {response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            if text := _text(json.loads(line[len(b"data: ") :])):
                last_s = time.perf_counter()
                first_s = first_s or last_s
                parts.append(text)
    each_ms = 1000 * (last_s - first_s) / max(1, len(parts) - 1)
    return 1000 * (first_s - began_s), each_ms, "".join(parts)


def _text(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""
