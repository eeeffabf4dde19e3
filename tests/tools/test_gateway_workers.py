"""Two processes of the gateway on one port: limits hold over both, figures add up, both drain, memory stays flat."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest

from configs.load import load_config, save_config
from serving_bridge.access import Gate
from serving_bridge.database import open_database
from serving_bridge.routing import KEYS_FOLDER
from serving_bridge.tenants import TENANTS, Accounts, DeploymentSecret
from serving_bridge.text import load_tokenizer
from tests.support.gateway_world import Replica, Script, report, serve
from tools.assembly import RunPaths, build_keys, build_registry, run_paths

SOAK_S = 60.0 * float(os.environ.get("WEIR_SOAK_MINUTES", "15"))
BODY: dict[str, Any] = {"model": "policy", "prompt": "Once upon", "max_tokens": 8}


@dataclass
class Workers:
    """Two workers over one scripted replica.

    Attributes:
      url: up to /v1.
      key: of the tenant "acme".
    """

    process: asyncio.subprocess.Process
    url: str
    key: str
    script: Script
    paths: RunPaths

    async def asked(self, *, stream: bool = False) -> int:
        """Status of one request on a connection of its own: the kernel deals connections out."""
        headers = {"Authorization": f"Bearer {self.key}"}
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(headers=headers, connector=connector) as session,
            session.post(f"{self.url}/completions", json={**BODY, "stream": stream}) as response,
        ):
            await response.read()
            return response.status

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.paths.metrics.read_text().splitlines()]


@asynccontextmanager
async def two_workers(
    tmp_path: Path, model: Path, script: Script, limits: dict[str, int | None]
) -> AsyncIterator[Workers]:
    directory = tmp_path / "run"
    directory.mkdir()
    more = ["gateway.require_keys=true", "gateway.workers=2", "gateway.drain_timeout_s=20"]
    config = load_config("stories", [f"run.directory={directory}", f"model.path={model}", *more])
    save_config(config, directory / "config.toml")
    paths = run_paths(config)
    keys, registry = build_keys(config, paths), build_registry(paths)
    keys.make()
    secret = DeploymentSecret.in_folder(paths.registry / KEYS_FOLDER, make=True)
    database = open_database(paths.database, timeout_s=5.0, schema=TENANTS)
    accounts = Accounts(database, secret)
    accounts.add("acme", priority="paid")
    if limits:
        accounts.set_limits("acme", limits)
    key = accounts.create_key("acme").key
    database.close()
    replica = Replica(load_tokenizer(model), script, "r0")
    runner = await serve(replica)
    control = keys.token("control", replica.url, replica.start)
    replica.gate = Gate(replica.url, control, keys.token("inference", replica.url, replica.start))

    async def alive() -> None:
        while True:
            report(registry, replica)
            await asyncio.sleep(5)

    reporting = asyncio.ensure_future(alive())
    command = [sys.executable, "-m", "tools.gateway", "--config", str(paths.config), "--set", "gateway.port=0"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        url = re.findall(r"http://\S+", line)[0]
        workers = Workers(process, url, key, script, paths)
        await _until_both_serve(workers)
        yield workers
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), 60)
        reporting.cancel()
        await runner.cleanup()


async def _until_both_serve(workers: Workers) -> None:
    """Until both processes listen and know the replica: requests that neither refuses, ten in a row."""
    began_s, good = time.monotonic(), 0
    while good < 10:
        assert time.monotonic() - began_s < 60, "the workers never served"
        try:
            good = good + 1 if await workers.asked() == 200 else 0
        except aiohttp.ClientError:
            good = 0
        children = psutil.Process(workers.process.pid).children(recursive=True)
        if good == 10 and len(_workers(children)) < 2:
            good = 0
        await asyncio.sleep(0.05)


def _workers(children: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that serve, of a supervisor's descendants."""
    return [child for child in children if "--worker" in child.cmdline() and not child.children()]


def test_limits_hold_over_two_workers_and_both_drain(tmp_path: Path, stories_model: Path) -> None:
    limits: dict[str, int | None] = {"requests_per_minute": 60, "request_burst": 40}
    script = Script("Once upon a time", token_s=0.02)

    async def play() -> None:
        began_s = time.monotonic()
        async with two_workers(tmp_path, stories_model, script, limits) as workers:
            statuses = await asyncio.gather(*(workers.asked() for _ in range(120)))
            assert set(statuses) == {200, 429}
            # docs/tenants.md: burst + rate * T, and an eighth of the burst for each process
            assert len(script.asked) <= 40 + (time.monotonic() - began_s) + 2 * 40 / 8
            await asyncio.sleep(8.0)  # the bucket has some again, by whichever worker
            going = [asyncio.ensure_future(workers.asked(stream=True)) for _ in range(4)]
            while not script.running:
                assert not all(task.done() for task in going), "no stream began"
                await asyncio.sleep(0.01)
            workers.process.send_signal(signal.SIGTERM)
            assert set(await asyncio.gather(*going)) <= {200, 429}, "a stream was cut off"
            assert await asyncio.wait_for(workers.process.wait(), 60) == 0
            events = workers.events()
            told = sum(event.get("statuses", {}).get("200", 0) for event in events if event["event"] == "gateway")
            assert told == len(script.asked), "the figures of both workers add up to what the replica saw"

    asyncio.run(play())


@pytest.mark.soak
@pytest.mark.timeout(int(SOAK_S) + 300)
def test_memory_stays_flat_under_load(tmp_path: Path, stories_model: Path) -> None:
    """16 clients for WEIR_SOAK_MINUTES; after a fifth of it no worker grows by more than 0.2 MiB a minute."""
    script = Script("Once upon a time there was", token_s=0.002)

    async def play() -> dict[int, list[tuple[float, float]]]:
        async with two_workers(tmp_path, stories_model, script, {}) as workers:
            began_s, seen = time.monotonic(), dict[int, list[tuple[float, float]]]()
            requests = 0

            async def client(number: int) -> None:
                nonlocal requests
                while time.monotonic() - began_s < SOAK_S:
                    assert await workers.asked(stream=number % 2 == 0) == 200
                    requests += 1
                    script.asked.clear()
                    await asyncio.sleep(0.2)

            async def watch() -> None:
                while time.monotonic() - began_s < SOAK_S:
                    for child in _workers(psutil.Process(workers.process.pid).children(recursive=True)):
                        rss = child.memory_info().rss / 2**20
                        seen.setdefault(child.pid, []).append(((time.monotonic() - began_s) / 60, rss))
                    await asyncio.sleep(2.0)

            await asyncio.gather(watch(), *(client(number) for number in range(16)))
            print(f"{requests} requests in {SOAK_S / 60:g} minutes")
            return seen

    for pid, points in asyncio.run(play()).items():
        late = np.array([point for point in points if point[0] > SOAK_S / 60 / 5])
        slope = np.polyfit(late[:, 0], late[:, 1], 1)[0]
        print(f"worker {pid}: {points[0][1]:.1f} MiB at first, {late[-1, 1]:.1f} at last, {slope:+.3f} MiB a minute")
        assert slope < 0.2
