"""What a request costs the gateway whose tenant is beyond its quota, beside a server that refuses everybody.

python -m tools.bench refusals [--requests 3000] [--rounds 5] [--clients 8] [--json PATH]

CPU time of the server's process for each refused request, all threads; sides take turns in each round:

  gateway            `python -m tools.gateway` with tenants and guards; the tenant has used up its minute
  bare               uvicorn and Starlette alone, as little as they can do: one route, and always the same answer
  unknown key        the gateway again, asked with a key that nobody has

Clients send a chat of one message, each with one request at a time on a connection that stays open.

Not covered: new connections, TLS, and large bodies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
from rich.table import Table

from tools.assembly import build_registry
from tools.bench import BenchmarkError
from tools.bench.gateway.deployment import cpu_of, gateway_running, make_deployment
from tools.bench.gateway.sides import bare_running, engine_running, make_tokenizer
from tools.bench.timing import console, json_path, positive, ratio, spread, this_hardware, write_json
from tools.command_line import CommandParser

GATEWAY, BARE, STRANGER = "gateway", "bare", "unknown key"
_QUOTA = {"requests_per_minute": 1, "request_burst": 1}
_REQUEST_S = 60.0
_BODY = {"model": "policy", "messages": [{"role": "user", "content": "Tell me a story of a fox and a dog."}]}


@dataclass(frozen=True)
class _Side:
    """Where a side's requests go, and what they must be answered with."""

    process: psutil.Process
    url: str
    key: str
    status: int


def main(argv: Sequence[str]) -> None:
    """Measures, prints a table, and writes the figures as JSON where asked to."""
    parser = CommandParser(
        prog="python -m tools.bench refusals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=positive, default=3000, help="of a side and round (default 3000)")
    parser.add_argument("--rounds", type=positive, default=5, help="(default 5)")
    parser.add_argument("--clients", type=positive, default=8, help="(default 8)")
    parser.add_argument("--json", type=json_path, metavar="PATH", help="write the figures to this file too")
    given = parser.parse_args(argv)
    hardware, out = this_hardware(), console()
    out.print(str(hardware), highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as folder:
        found = asyncio.run(_measured(Path(folder), given))
    table = Table("side", "CPU time of a refusal, us", "over bare", box=None)
    for name, microseconds in found.items():
        table.add_row(name, spread(microseconds).show(), ratio(microseconds, found[BARE]).show())
    out.print(table)
    if given.json is not None:
        settings = {key: str(value) for key, value in vars(given).items() if key != "json"}
        write_json(given.json, "refusals", hardware, settings, found)
        out.print(f"wrote {given.json}", highlight=False)


async def _measured(folder: Path, given: argparse.Namespace) -> dict[str, list[float]]:
    """CPU microseconds of a refused request of each side, one for each round."""
    make_tokenizer(folder)
    paths, keys = make_deployment(folder, folder, {"beyond": _QUOTA})
    found: dict[str, list[float]] = {GATEWAY: [], BARE: [], STRANGER: []}
    with (
        engine_running(folder, pace_ms=1.0) as engine,
        gateway_running(paths) as (process, url),
        bare_running(folder) as (bare, bare_url),
    ):
        build_registry(paths).report("engine", url=engine, state="healthy", version=1, step=1, start="bench")
        sides = {
            GATEWAY: _Side(process, url, keys["beyond"], 429),
            BARE: _Side(bare, bare_url, "", 429),
            STRANGER: _Side(process, url, keys["beyond"][:-1], 401),
        }
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await _until_refused(session, sides[GATEWAY])
            for number in range(given.rounds):
                for name in [*sides][number % len(sides) :] + [*sides][: number % len(sides)]:
                    side = sides[name]
                    cpu_s = cpu_of(side.process)
                    statuses = await _asked(session, side, given.requests, given.clients)
                    if set(statuses) != {side.status}:
                        raise BenchmarkError(f"{name}: the answers were {dict(statuses)}, expected {side.status} alone")
                    found[name].append(1e6 * (cpu_of(side.process) - cpu_s) / given.requests)
    return found


async def _until_refused(session: aiohttp.ClientSession, side: _Side) -> None:
    async with asyncio.timeout(_REQUEST_S):
        while set(await _asked(session, side, 20, 1)) != {side.status}:
            await asyncio.sleep(0.1)


async def _asked(session: aiohttp.ClientSession, side: _Side, requests: int, clients: int) -> Counter[int]:
    """How many of so many requests were answered with which status."""
    body = json.dumps(_BODY | {"max_tokens": 4}).encode()
    headers = {"Authorization": f"Bearer {side.key}", "Content-Type": "application/json"}
    numbers, statuses = iter(range(requests)), Counter[int]()

    async def client() -> None:
        for _ in numbers:
            async with session.post(f"{side.url}/chat/completions", data=body, headers=headers) as response:
                await response.read()
                statuses[response.status] += 1

    async with asyncio.timeout(_REQUEST_S):
        await asyncio.gather(*(client() for _ in range(clients)))
    return statuses
