"""A users' fleet of real vLLM replicas behind the gateway, clients that go on asking it, and what is watched of it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from serving_bridge.registry import Registry, TrafficChange
from serving_bridge.routing import ReplicaRegistry, registry_folder
from tests.conftest import REPOSITORY
from tests.support.served_run import served_config
from tools.assembly import registered_run

CLIENTS = 6
#: for two servers to start on a busy machine
START_S = 300.0
SERVING = """
follow = "aliases"
kept_versions = 1
replicas = 2
drain_timeout_s = 8.0
"""
MORE = """
[gateway]
follow = "aliases"
port = 0
[registry]
path = "{registry}"
database = "{database}"
[safety]
enabled = false
{more}"""


@dataclass(frozen=True)
class Heard:
    """One answer: when it came, and what it said of itself."""

    at_s: float
    status: int
    arm: str
    wanted: str
    versions: frozenset[int]


@dataclass
class Load:
    """Clients that go on asking, each request in a conversation of its own; `told` hears every answer."""

    url: str
    heard: list[Heard] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    asked: int = 0
    told: Callable[[Mapping[str, Any]], None] = lambda answer: None

    async def run(self, session: aiohttp.ClientSession) -> None:
        while True:
            self.asked += 1
            body = {
                "model": "policy",
                "messages": [{"role": "user", "content": f"What is {self.asked}?"}],
                "max_tokens": 40,
                "logit_bias": {"1": -100},
            }
            try:
                async with session.post(f"{self.url}/chat/completions", json=body) as response:
                    answer = await response.json()
                    if response.status != 200:
                        self.errors.append(f"{response.status}: {answer}")
                        continue
            except (aiohttp.ClientError, TimeoutError) as error:
                self.errors.append(repr(error))
                continue
            self.told(answer)
            weir = answer["weir"]
            versions = frozenset(span["version"] for span in weir["policy_versions"][0])
            wanted = weir.get("wanted_arm", weir["arm"])
            self.heard.append(Heard(time.monotonic(), response.status, weir["arm"], wanted, versions))

    def since(self, at_s: float) -> list[Heard]:
        return [one for one in self.heard if one.at_s >= at_s]

    async def until(self, what: Callable[[list[Heard]], bool], limit_s: float = 60.0) -> float:
        """Lets the load go on until the answers of the last second are like this; seconds that it took."""
        began_s = time.monotonic()
        while True:
            recent = self.since(max(began_s, time.monotonic() - 1.0))
            if len(recent) >= CLIENTS and time.monotonic() - began_s > 1.0 and what(recent):
                return time.monotonic() - began_s - 1.0
            assert time.monotonic() - began_s < limit_s, recent[-3:]
            await asyncio.sleep(0.1)


class Drill:
    """The processes and what is watched of them.

    Args:
      models: folders of the entries 1, 2, ...; somebody has taken the responsibility for them.
      more: of the configuration.
      database: of the registry; "" for the file in its folder.
    """

    def __init__(self, folder: Path, models: Sequence[Path], more: str = "", database: str = "") -> None:
        self.folder, self.run, self.database = folder, folder / "run", database
        self.run.mkdir()
        more = MORE.format(registry=folder / "registry", database=database, more=more)
        learner = 'publish_dtype = "float32"'
        text = served_config("users", self.run, models[0], learner=learner, serving=SERVING, more=more)
        (self.run / "config.toml").write_text(text)
        self.registry = Registry(folder / "registry", database=database or None)
        for model in models:
            found = registered_run.of_folder(model, parent=None, note="")
            entry = self.registry.add(
                "default", found.tensors, found.manifest, found.files, found.candidate, actor="ann"
            )
            self.registry.index.set_stage("default", entry.number, "passed", actor="ann", reason="x", unproven=True)
        store = self.registry.weights.store("default")
        self.rows = ReplicaRegistry(registry_folder(str(store.root), store.root))
        self.most_versions = 0

    def move(self, reason: str, share: float | None = None, **aliases: int | None) -> None:
        traffic = None if share is None else TrafficChange(share)
        self.registry.move("default", aliases, holder="ann", actor="ann", reason=reason, traffic=traffic)

    async def start(self, module: str, *more: str) -> tuple[asyncio.subprocess.Process, Path]:
        output = self.folder / f"{module}.out"
        with output.open("wb") as to:
            environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, "--config", str(self.run / "config.toml"), *more),
                stdout=to, stderr=asyncio.subprocess.STDOUT, cwd=REPOSITORY, env=environment,
            )  # fmt: skip
        return process, output

    async def until_served(
        self, *versions: int, limit_s: float = START_S, alive: Callable[[], tuple[bool, str]] = lambda: (True, "")
    ) -> float:
        began_s = time.monotonic()
        while sorted(row.version for row in self.rows.ready() if row.arm != "leaving") != sorted(versions):
            assert time.monotonic() - began_s < limit_s, self.rows.replicas()
            assert alive()[0], alive()[1]
            await asyncio.sleep(0.1)
        return time.monotonic() - began_s

    async def watch(self) -> None:
        """Counts how many versions are in service at a time."""
        while True:
            serving = {row.version for row in self.rows.usable() if row.version >= 0}
            self.most_versions = max(self.most_versions, len(serving))
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def serving(self, *versions: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
        """A fleet that serves these versions, and a gateway: (the fleet's process, the gateway's address)."""
        serving, output = await self.start("tools.serve", "--name", "users")
        gateway = None
        try:
            await self.until_served(*versions, alive=lambda: (serving.returncode is None, output.read_text()[-2000:]))
            gateway, output = await self.start("tools.gateway")
            while not (found := re.search(r"listens at (\S+);", output.read_text())):
                await asyncio.sleep(0.1)
                assert gateway.returncode is None, output.read_text()
            await asyncio.sleep(2)
            yield serving, found[1]
        finally:
            for process in filter(None, (gateway, serving)):
                if process.returncode is None:
                    process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(process.wait(), 60)

    @asynccontextmanager
    async def asking(self, load: Load) -> AsyncIterator[None]:
        """Clients at work, and versions in service counted."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            tasks = [asyncio.ensure_future(load.run(session)) for _ in range(CLIENTS)]
            tasks.append(asyncio.ensure_future(self.watch()))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                load.errors += [repr(end) for end in ended if not isinstance(end, asyncio.CancelledError)]
