"""A users' fleet of two real vLLM replicas behind the gateway: promoted, rolled back and replaced under load."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from serving_bridge.registry import Registry, TrafficChange
from serving_bridge.routing import ReplicaRegistry, registry_folder
from serving_bridge.telemetry.metrics_log import read_metrics
from tests.conftest import REPOSITORY
from tests.support.letters import letter_model
from tools.assembly import registered_run

pytestmark = pytest.mark.soak

CLIENTS = 6
#: for two servers to start on a busy machine
START_S = 300.0
CONFIG = """
[run]
name = "users"
directory = "{run}"
[model]
path = "{model}"
[task]
provider = "reasoning_gym"
name = "basic_arithmetic"
[learner]
steps = 1
groups_per_step = 1
sequence_length = 256
microbatch_rows = 1
publish_dtype = "float32"
[rollout]
max_prompt_tokens = 40
max_tokens = 200
[serving]
follow = "aliases"
kept_versions = 1
max_model_len = 256
replicas = 2
drain_timeout_s = 8.0
[gateway]
follow = "aliases"
port = 0
[registry]
path = "{registry}"
[safety]
enabled = false
"""


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
    """Clients that go on asking, each request in a conversation of its own."""

    url: str
    heard: list[Heard] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    asked: int = 0

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
            except aiohttp.ClientError as error:
                self.errors.append(repr(error))
                continue
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
    """The processes and what is watched of them."""

    def __init__(self, folder: Path) -> None:
        models = [folder / "a", folder / "b"]
        for seed, model in enumerate(models):
            letter_model(model, seed)
        self.folder, self.run = folder, folder / "run"
        self.run.mkdir()
        text = CONFIG.format(run=self.run, model=models[0], registry=folder / "registry")
        (self.run / "config.toml").write_text(text)
        self.registry = Registry(folder / "registry")
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


async def _play(drill: Drill, load: Load) -> dict[str, Any]:
    """The steps, and how long each took until the answers were as they should be."""
    took: dict[str, Any] = {}
    await load.until(lambda recent: {one.arm for one in recent} == {"stable"})
    drill.move("first step", canary=2, share=0.3)
    took["canary answers"] = await load.until(lambda recent: any(2 in one.versions for one in recent))
    began_s = time.monotonic()
    await asyncio.sleep(20)
    of_step = load.since(began_s)
    took["share"] = sum(one.arm == "canary" for one in of_step) / len(of_step), len(of_step)
    assert all(one.arm == one.wanted for one in of_step), "one arm answered for another while both were ready"
    drill.move("worse", canary=None)
    took["canary is gone"] = await load.until(lambda recent: all(one.versions == {1} for one in recent))
    await drill.until_served(1, 1)
    drill.move("once more", canary=2, share=0.5)
    await load.until(lambda recent: any(2 in one.versions for one in recent))
    drill.move("better", stable=2, canary=None, previous=1)
    took["promoted"] = await load.until(lambda recent: all(one.versions == {2} for one in recent))
    await drill.until_served(2, 2)
    drill.move("a rollback", stable=1, previous=None)
    took["rolled back"] = await load.until(lambda recent: all(one.versions == {1} for one in recent))
    await drill.until_served(1, 1)
    return took


def test_versions_come_and_go_under_load_and_no_request_fails(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    drill = Drill(tmp_path)
    drill.move("first", stable=1)

    async def play() -> None:
        serving, output = await drill.start("tools.serve", "--name", "users")
        gateway = None
        try:
            await drill.until_served(1, 1, alive=lambda: (serving.returncode is None, output.read_text()[-2000:]))
            gateway, output = await drill.start("tools.gateway")
            while not (found := re.search(r"listens at (\S+);", output.read_text())):
                await asyncio.sleep(0.1)
                assert gateway.returncode is None, output.read_text()
            load = Load(found[1])
            await asyncio.sleep(2)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
                tasks = [asyncio.ensure_future(load.run(session)) for _ in range(CLIENTS)]
                tasks.append(asyncio.ensure_future(drill.watch()))
                try:
                    took = await _play(drill, load)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
            _judge(drill, load, took)
        finally:
            for process in filter(None, (gateway, serving)):
                if process.returncode is None:
                    process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(process.wait(), 60)

    asyncio.run(play())
    drill.registry.close()


def _judge(drill: Drill, load: Load, took: dict[str, Any]) -> None:
    print({name: f"{value:.1f} s" for name, value in took.items() if name != "share"})
    share, number = took["share"]
    print(f"{len(load.heard)} answers, canary answered {share:.3f} of {number} at 0.3")
    assert load.errors == []
    assert abs(share - 0.3) <= 4 * (0.3 * 0.7 / number) ** 0.5
    assert drill.most_versions == 2
    mixed = [one for one in load.heard if len(one.versions) > 1]
    assert mixed == [], "an answer is of two versions"
    rounds = [event for event in read_metrics(drill.run / "metrics.jsonl") if event["event"] == "round"]
    assert {event["outcome"] for event in rounds} == {"updated"}
    print({event["replica"]: (event["version"], event["stage_s"], event["pause_s"]) for event in rounds})
