"""The fleet controller with a real vLLM server: whatever breaks, the newest weights are served again, by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from serving_bridge.access.keys import FleetKeys, Role
from serving_bridge.fleet.controller import Fleet
from serving_bridge.processes.guard import descendants
from serving_bridge.routing.registry import KEYS_FOLDER, ReplicaRegistry, ReplicaRow
from serving_bridge.settings.serving import StoreSettings
from serving_bridge.vllm.client import VllmClient
from serving_bridge.weights import folder_shelf
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.shelf import MANIFEST_NAME
from serving_bridge.weights.store import WeightStore
from tests.support.weight_world import SETTINGS, golden_of, greedily, greedy, make_model, tensors_of

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

PROMPT = (5, 6, 7)
#: an engine that samples nothing for so long is restarted
HANG_S = 25.0
#: to be whole again after any fault, a restart of the server included; more than it takes, for busy machines
WHOLE_S = 240.0  # a start takes 25 s on two quiet cores, and several times as long beside other work


@dataclass
class Running:
    """A fleet of one replica, and what is published to it."""

    runner: asyncio.Runner
    store: WeightStore
    registry: ReplicaRegistry
    publisher: Publisher
    model: Any
    events: list[dict[str, Any]] = field(default_factory=list)

    def publish(self) -> int:
        """A version that differs in every twentieth element or so."""
        import torch

        generator = torch.Generator().manual_seed(len(self.store.versions()))
        with torch.no_grad():
            for parameter in self.model.parameters():
                moves = torch.rand(parameter.shape, generator=generator) < 0.05
                parameter.copy_(torch.where(moves, parameter * 1.05, parameter))
        tensors = tensors_of(self.model)
        return self.publisher.publish(tensors.items(), step=0, golden=golden_of(self.model)).version

    def until_served(self, version: int, newer_than_s: float = 0.0, within_s: float = WHOLE_S) -> ReplicaRow:
        """Lets the fleet run until the replica is ready with a version, and says which that is."""

        async def wait() -> ReplicaRow:
            deadline = time.monotonic() + within_s
            while True:
                rows = [row for row in self.registry.ready() if row.version == version]
                if rows and rows[0].heartbeat_s > newer_than_s:
                    return rows[0]
                assert time.monotonic() < deadline, (self.registry.replicas(), self.events[-5:])
                await asyncio.sleep(0.02)

        return self.runner.run(wait())

    def client(self, row: ReplicaRow, session: Any, role: Role) -> VllmClient:
        keys = FleetKeys(self.registry.folder / KEYS_FOLDER)
        return VllmClient(row.url, session, token=keys.token(role, row.url, row.start))

    def assert_serves(self, row: ReplicaRow) -> None:
        """It answers as the model that was published last."""

        async def ask() -> np.ndarray:
            async with aiohttp.ClientSession() as session:
                answer = await greedily(self.client(row, session, "inference"), PROMPT, 30)
                assert set(answer.policy_version.tolist()) == {row.version}
                return answer.tokens

        np.testing.assert_array_equal(self.runner.run(ask()), greedy(self.model, PROMPT, 30))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.events if record["event"] == event]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("fleet")
    model = make_model(folder / "model", 0)
    events: list[dict[str, Any]] = []

    def log(event: str, **fields: Any) -> None:
        events.append({"event": event, **fields})

    store, registry = WeightStore(folder / "weights", "run"), ReplicaRegistry(folder / "weights" / "replicas")
    publisher = Publisher(store, StoreSettings(), log=log)
    stop = False
    fleet = Fleet(
        SETTINGS.model_copy(update={"hang_s": HANG_S}),
        model_dir=folder / "model",
        store=store,
        registry=registry,
        log_dir=folder,
        keep_versions=8,
        log=log,
        should_stop=lambda: stop,
    )
    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(fleet.run())
        yield Running(runner, store, registry, publisher, model, events)
        stop = True
        runner.run(asyncio.wait_for(task, 60))
    publisher.close()


def server_of(row: ReplicaRow) -> int:
    """Process id of the API server that listens there."""
    port = row.url.rpartition(":")[2].encode()
    for pid in descendants(os.getpid()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"vllm.entrypoints.openai.api_server" in command and port in command and b"--grace" not in command:
            return pid
    raise AssertionError(f"no server listens at {row.url}")


def test_versions_are_followed_by_updates(running: Running):
    first = running.publish()
    running.assert_serves(running.until_served(first))
    second = running.publish()
    assert running.store.manifest(second).format == "sparse"
    running.assert_serves(running.until_served(second))
    assert [record["outcome"] for record in running.named("round")] == ["updated", "updated"]


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flipped, "update.safetensors has sha256"),
        (lambda path: os.truncate(path, 100), "update.safetensors has 100 bytes, expected"),
        (Path.unlink, "update.safetensors is missing"),
    ],
    ids=["flipped bit", "truncated", "missing"],
)
def test_a_damaged_update_is_named_never_served_and_healed(
    running: Running, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], message: str
):
    before, real = len(running.events), folder_shelf.write_safetensors

    def damaged(path: Path, tensors: Any) -> Any:
        file = real(path, tensors)
        damage(path)
        return file

    with monkeypatch.context() as patch:
        patch.setattr(folder_shelf, "write_safetensors", damaged)
        version = running.publish()
    started = time.monotonic()
    running.assert_serves(running.until_served(version))
    print(f"whole again after {time.monotonic() - started:.1f} s")
    new = running.events[before:]
    rounds = [(r["version"], r["outcome"]) for r in new if r["event"] == "round"]
    assert rounds == [(version, "rejected"), (version, "updated")]
    (named,) = [r for r in new if r["event"] == "version_damaged"]
    assert message in named["error"]
    assert [r["version"] for r in new if r["event"] == "anchor_added"] == [version]


def test_a_damaged_manifest_is_named_and_healed(running: Running, monkeypatch: pytest.MonkeyPatch):
    before, real = len(running.events), folder_shelf.write_durably

    def damaged(path: Path, payload: bytes) -> None:
        real(path, payload[:-40] if path.name == MANIFEST_NAME else payload)

    with monkeypatch.context() as patch:
        patch.setattr(folder_shelf, "write_durably", damaged)
        version = running.publish()
    running.assert_serves(running.until_served(version))
    (named,) = [r for r in running.events[before:] if r["event"] == "version_damaged"]
    assert "not a weight manifest" in named["error"]


def test_a_server_killed_while_paused_comes_back_with_the_newest_version(running: Running):
    version = running.publish()
    row = running.until_served(version)

    async def kill_paused() -> None:
        async with aiohttp.ClientSession() as session:
            await running.client(row, session, "control").control().pause()
        os.kill(server_of(row), signal.SIGKILL)  # the server's own process; the others end with it

    running.runner.run(kill_paused())
    started, killed_s = time.monotonic(), time.time()
    newer = running.publish()
    row = running.until_served(newer, newer_than_s=killed_s)
    print(f"whole again after {time.monotonic() - started:.1f} s")
    running.assert_serves(row)
    assert running.named("replica_restart")


@pytest.mark.soak
@pytest.mark.parametrize("stopped", ["engine", "server"])
def test_a_stopped_process_is_found_and_replaced_in_bounded_time(running: Running, stopped: str):
    """SIGSTOP of the engine leaves /health answering; of the server, the engine idle."""
    version = running.publish()
    row = running.until_served(version)
    server = server_of(row)
    engine = descendants(server) if stopped == "engine" else [server]
    assert engine
    before, stopped_s = len(running.events), time.time()
    for pid in engine:
        os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    row = running.until_served(version, newer_than_s=stopped_s + HANG_S / 2, within_s=2 * HANG_S + WHOLE_S)
    while not (lost := [r for r in running.events[before:] if r["event"] == "replica_lost"]):
        assert time.monotonic() - started < 2 * HANG_S
        row = running.until_served(version, newer_than_s=row.heartbeat_s, within_s=2 * HANG_S + WHOLE_S)
    row = running.until_served(version, newer_than_s=time.time(), within_s=WHOLE_S)
    print(f"{stopped} stopped: whole again after {time.monotonic() - started:.1f} s (hang_s = {HANG_S:g})")
    expected = "samples nothing since" if stopped == "engine" else "no answer to /health for"
    assert expected in lost[0]["reason"]
    running.assert_serves(row)
