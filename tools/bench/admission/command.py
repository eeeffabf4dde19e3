"""What a request costs a gateway before and after its answer: key, limits, budgets, turn, journal and bill.

python -m tools.bench admission [--requests 2000] [--rounds 9] [--tenants 100] [--directory DIR] [--json PATH]

CPU time of this process for each request, all threads: "authenticate" reads the key; "admit and settle" reserves in all
limits of tenant and deployment, takes a place, writes the journal and settles; "exchange" is what one exchange with the
database (SQLite, every commit durable) costs for each answer that it bills. Every tenant has every kind of limit.

Not covered: waiting in the queue, the gateway's HTTP, and other processes that use the database.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from serving_bridge.database import Database, open_database
from serving_bridge.tenants import TENANTS, Accounts, Ask, DeploymentSecret, Price, Tenants, read_price
from tools.bench.timing import Spread, bench_parser, console, positive, spread, this_hardware, write_json

#: CPU microseconds of a request, exchanges left out.
AIM_US = 100.0
_ASK = Ask(prompt_tokens=200, max_tokens=300, model="demo")
_LIMITS = {
    "requests_per_minute": 10**9,
    "tokens_per_minute": 10**12,
    "concurrency": 10**6,
    "month_tokens": 10**14,
    "month_nanos": 10**15,
}


def main(argv: Sequence[str]) -> None:
    """Measures, prints a table and the aim, and writes them as JSON where asked to."""
    parser = bench_parser("admission", __doc__)
    parser.add_argument("--requests", type=positive, default=2000, help="of a round (default 2000)")
    parser.add_argument("--rounds", type=positive, default=9, help="(default 9)")
    parser.add_argument("--tenants", type=positive, default=100, help="in turns (default 100)")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where everything is written, and deleted")
    given = parser.parse_args(argv)
    if given.directory is not None and not given.directory.is_dir():
        parser.error(f"--directory {given.directory}: expected an existing folder")
    hardware, out = this_hardware(), console()
    with tempfile.TemporaryDirectory(dir=given.directory) as folder:
        found = asyncio.run(
            measure(Path(folder), requests=given.requests, rounds=given.rounds, num_tenants=given.tenants)
        )
    out.print(str(hardware), highlight=False, soft_wrap=True)
    table = Table("part", "CPU time of a request, us: median (10th-90th percentile)", box=None)
    for part, values in found.items():
        table.add_row(part, values.show())
    out.print(table)
    total = found["authenticate"].median + found["admit and settle"].median
    out.print(f"{total:.0f} us a request, aim below {AIM_US:.0f}: {'kept' if total < AIM_US else 'missed'}")
    if given.json is not None:
        settings = {"requests": given.requests, "rounds": given.rounds, "tenants": given.tenants}
        write_json(
            given.json, "admission", hardware, settings, {part: asdict(values) for part, values in found.items()}
        )


async def measure(folder: Path, *, requests: int, rounds: int, num_tenants: int) -> dict[str, Spread]:
    """CPU microseconds of a request, by part."""
    database = open_database(folder / "tenants.db", schema=TENANTS)
    secret = DeploymentSecret(bytes(range(32)))
    keys = _make_tenants(database, secret, num_tenants)
    tenants = Tenants("", secret, folder / "spool", database=database, blocking=_inline)
    await tenants.start()
    for key in keys:  # so that every slice is there
        await _round(tenants, [key], "first")
    await tenants._exchange.once()
    await tenants._exchange.once()
    parts: dict[str, list[float]] = {"authenticate": [], "admit and settle": [], "exchange": []}
    for number in range(rounds):
        chosen = [keys[i % num_tenants] for i in range(requests)]
        began = time.process_time()
        for key in chosen:
            tenants.authenticate({"authorization": f"Bearer {key}"})
        middle = time.process_time()
        await _round(tenants, chosen, str(number))
        end = time.process_time()
        await tenants._exchange.once()
        last = time.process_time()
        for part, seconds in zip(parts, (middle - began, end - middle - (middle - began), last - end), strict=True):
            parts[part].append(1e6 * seconds / requests)
    await tenants.close()
    database.close()
    return {part: spread(values) for part, values in parts.items()}


async def _round(tenants: Tenants, keys: Sequence[str], name: str) -> None:
    for number, key in enumerate(keys):
        caller = tenants.authenticate({"authorization": f"Bearer {key}"})
        ticket = await tenants.admit(caller, _ASK, f"{name}-{number}-{key[-8:]}", timeout_s=10.0)
        ticket.settle(200, 120)


def _make_tenants(database: Database, secret: DeploymentSecret, count: int) -> list[str]:
    accounts = Accounts(database, secret)
    accounts.set_limits(None, _LIMITS)
    accounts.set_price("demo", Price(read_price("0.15"), read_price("0.60")))
    keys = []
    for number in range(count):
        name = f"tenant-{number}"
        accounts.add(name)
        accounts.set_limits(name, _LIMITS)
        keys.append(accounts.create_key(name).key)
    return keys


async def _inline(call: Callable[..., Any], *arguments: Any) -> Any:
    """On this thread, so that the CPU time of an exchange is not a request's."""
    return call(*arguments)
