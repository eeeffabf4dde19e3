"""Memory of the gateway over a long time: whether it stays flat under a steady load.

python -m tools.bench gateway_memory [--minutes 60] [--per-second 4] [--tokens 16] [--pace-ms 10] [--every-s 10]
                                     [--json PATH]

One process of `python -m tools.gateway`, with all that a deployment has: keys, limits and bills of a tenant, guards
with their audit log, and recorded sessions. Before it stands a steady load of streams; every fourth one goes on with
the conversation before it. Behind it stands an engine that streams the same text at a set pace.

The growth is the slope of a line through resident memory after the first quarter, in which caches fill: least squares,
with twice its standard error from the means of ten parts, since neighbours resemble each other.

Not covered: a cache that fills later; memory of the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from rich.table import Table

from serving_bridge.routing import ReplicaRegistry
from tools.assembly import build_registry
from tools.bench import BenchmarkError
from tools.bench.gateway.deployment import gateway_running, make_deployment
from tools.bench.gateway.sides import engine_running, make_tokenizer
from tools.bench.timing import bench_parser, console, positive, progress, this_hardware, write_json

#: MiB an hour that count as flat
AIM_MIB_AN_HOUR = 1.0
_START_S, _REQUEST_S, _REPORT_S = 120.0, 60.0, 5.0
_PARTS = 10
_SETTLED = 0.25
#: every kind of limit, none of them reached
_LIMITS = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9, "concurrency": 1000}


@dataclass(frozen=True)
class Growth:
    """Of resident memory.

    Attributes:
      first_mib, settled_mib, last_mib: at the first request, after the first quarter, and at the end.
      mib_an_hour, error: slope after the first quarter, and twice its standard error.
      requests: that were answered.
      cpu_cores: the process used, on average.
    """

    first_mib: float
    settled_mib: float
    last_mib: float
    mib_an_hour: float
    error: float
    requests: int
    cpu_cores: float


def main(argv: Sequence[str]) -> None:
    """Measures, prints a table, and writes figures and samples as JSON where asked to."""
    parser = bench_parser("gateway_memory", __doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="(default 60)")
    parser.add_argument("--per-second", type=float, default=4.0, help="requests (default 4)")
    parser.add_argument("--tokens", type=positive, default=16, help="of an answer (default 16)")
    parser.add_argument("--pace-ms", type=float, default=10.0, help="time of a token (default 10)")
    parser.add_argument("--every-s", type=float, default=10.0, help="between looks at the memory (default 10)")
    given = parser.parse_args(argv)
    for name in ("minutes", "per_second", "pace_ms", "every_s"):
        if not getattr(given, name) > 0:
            parser.error(f"--{name.replace('_', '-')}: expected more than 0, got {getattr(given, name)}")
    if given.minutes * 60 < 2 * _PARTS * given.every_s:
        parser.error(
            f"--minutes {given.minutes:g} is too short: expected {2 * _PARTS} looks or more, one every --every-s"
        )
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as folder:
        samples, growth = asyncio.run(_measured(Path(folder), given))
    table = Table("MiB at first", "after a quarter", "at last", "MiB an hour", "requests", "CPU, cores", box=None)
    sizes = (f"{size:.1f}" for size in (growth.first_mib, growth.settled_mib, growth.last_mib))
    slope = f"{growth.mib_an_hour:+.2f} ± {growth.error:.2f}"
    table.add_row(*sizes, slope, str(growth.requests), f"{growth.cpu_cores:.2f}")
    out.print(table)
    reached = "reached" if growth.mib_an_hour <= max(AIM_MIB_AN_HOUR, growth.error) else "not reached"
    out.print(f"at most {AIM_MIB_AN_HOUR:g} MiB an hour, or no more than its error, is the aim: {reached}")
    if given.json is not None:
        settings = {key: str(value) for key, value in vars(given).items() if key != "json"}
        write_json(given.json, "gateway_memory", hardware, settings, {**asdict(growth), "samples": samples})
        out.print(f"wrote {given.json}", highlight=False)


async def _measured(folder: Path, given: argparse.Namespace) -> tuple[list[tuple[float, float]], Growth]:
    """(minutes, MiB) of each look, and what they come to."""
    make_tokenizer(folder)
    paths, keys = make_deployment(folder, folder, {"acme": _LIMITS}, ("sessions.record=true",))
    with engine_running(folder, pace_ms=given.pace_ms) as engine, gateway_running(paths) as (process, url):
        reporting = asyncio.ensure_future(_reported(build_registry(paths), engine))
        try:
            load = _Load(url, keys["acme"], given.tokens, given.per_second)
            return await _watched(process, load, given)
        finally:
            reporting.cancel()


async def _watched(
    process: psutil.Process, load: _Load, given: argparse.Namespace
) -> tuple[list[tuple[float, float]], Growth]:
    await load.until_answered()
    began_s, samples = time.monotonic(), list[tuple[float, float]]()
    cpu_s = sum(process.cpu_times()[:2])
    asking = asyncio.ensure_future(load.run())
    with progress() as bar:
        task = bar.add_task("minutes", total=given.minutes)
        while (minutes := (time.monotonic() - began_s) / 60) < given.minutes:
            samples.append((round(minutes, 3), round(process.memory_info().rss / 2**20, 3)))
            bar.update(task, completed=minutes)
            await asyncio.wait([asking], timeout=given.every_s)
            if asking.done():
                asking.result()
    asking.cancel()
    cores = (sum(process.cpu_times()[:2]) - cpu_s) / (time.monotonic() - began_s)
    return samples, growth_of(samples, requests=load.answered, cpu_cores=cores)


def growth_of(samples: Sequence[tuple[float, float]], *, requests: int, cpu_cores: float) -> Growth:
    """What (minutes, MiB) come to."""
    times, sizes = np.asarray(samples, np.float64).T
    settled = times >= _SETTLED * times[-1]
    late, mib = times[settled] / 60, sizes[settled]
    hours, levels = (np.array([part.mean() for part in np.array_split(a, _PARTS)]) for a in (late, mib))
    slope, level = np.polyfit(hours, levels, 1)
    residual = levels - (slope * hours + level)
    error = np.sqrt(residual @ residual / (_PARTS - 2) / np.sum((hours - hours.mean()) ** 2))
    return Growth(sizes[0], mib[0], sizes[-1], float(slope), float(2 * error), requests, cpu_cores)


class _Load:
    """Streams at random moments; every fourth goes on with a conversation."""

    def __init__(self, url: str, key: str, tokens: int, per_second: float) -> None:
        self._url, self._headers = f"{url}/chat/completions", {"Authorization": f"Bearer {key}"}
        self._tokens, self._per_second, self._random = tokens, per_second, random.Random(0)
        self._before: list[dict[str, str]] = []
        self.answered = 0

    async def until_answered(self) -> None:
        """Waits for the first answer. Raises `BenchmarkError`."""
        end_s = time.monotonic() + _START_S
        async with aiohttp.ClientSession(headers=self._headers) as session:
            while True:
                try:
                    await self._one(session, 0)
                    return
                except (BenchmarkError, aiohttp.ClientError):
                    if time.monotonic() > end_s:
                        raise
                await asyncio.sleep(0.2)

    async def run(self) -> None:
        """Goes on until it is cancelled. Raises `BenchmarkError` for a request that is refused."""
        number = 0
        async with (
            aiohttp.ClientSession(headers=self._headers, connector=aiohttp.TCPConnector(limit=0)) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                await asyncio.sleep(self._random.expovariate(self._per_second))
                number += 1
                group.create_task(self._one(session, number))

    async def _one(self, session: aiohttp.ClientSession, number: int) -> None:
        again = number % 4 == 0 and self._before
        asked = {"role": "user", "content": f"Tell me story {number} of a fox and a dog, with a good end."}
        messages = [*(self._before if again else ()), asked]
        body = {"model": "policy", "messages": messages, "stream": True, "max_tokens": self._tokens, "store": True}
        async with asyncio.timeout(_REQUEST_S), session.post(self._url, json=body) as response:
            content = (await response.read()).decode()
        if response.status != 200 or '"error"' in content:
            raise BenchmarkError(f"the gateway answered {response.status}: {content[:300]}")
        said = "".join(re.findall(r'"content":"((?:[^"\\]|\\.)*)"', content))
        self._before = [] if again else [*messages, {"role": "assistant", "content": said}]
        self.answered += 1


async def _reported(registry: ReplicaRegistry, engine: str) -> None:
    """Keeps the engine's row fresh, as a fleet does."""
    start = secrets.token_hex(8)
    while True:
        registry.report("engine", url=engine, state="healthy", version=1, step=1, start=start)
        await asyncio.sleep(_REPORT_S)
