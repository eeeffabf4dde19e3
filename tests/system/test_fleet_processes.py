"""`tools.serve` and `tools.fleet` as processes, over engines that answer as vLLM does and start in a second."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp
import pytest
from rich.console import Console

from learner_jax.runtime.waits import Waits
from serving_bridge.access.keys import FleetKeys
from serving_bridge.fleet.orders import OrderBook
from serving_bridge.processes.guard import descendants
from serving_bridge.routing.registry import KEYS_FOLDER, ReplicaRegistry, ReplicaRow
from serving_bridge.telemetry.metrics_log import read_metrics
from serving_bridge.vllm.client import Completion, ReplicaError, VllmClient
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.conftest import REPOSITORY
from tests.support.served_run import served_config
from tests.support.weight_world import golden_of, make_model, tensors_of
from tools.fleet import FleetToolError, choose_fleet, give_order, status_table

pytest.importorskip("vllm", reason="vLLM is not installed")

T = TypeVar("T")
TOKEN_S, DRAIN_S = 0.02, 8.0
SERVING = f"""
replicas = 2
server_module = "tools.testing.fake_vllm.server"
engine_args = {{ token_s = {TOKEN_S} }}
health_interval_s = 0.2
hang_s = 4.0
drain_timeout_s = {DRAIN_S}
"""
#: more than anything here takes, for busy machines
LONG_S = 40.0


@dataclass
class Run:
    """A run directory with one published version, and the fleets that serve it."""

    directory: Path
    registry: ReplicaRegistry
    fleets: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def serve(self, name: str, *overrides: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tools.serve", "--config", str(self.directory / "config.toml"), "--name", name]
        command += [part for override in overrides for part in ("--set", override)]
        with (self.directory / f"{name}.out").open("ab") as output:
            environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
            self.fleets[name] = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=environment
            )
        return self.fleets[name]

    def output(self, name: str) -> str:
        return (self.directory / f"{name}.out").read_text()

    def until(self, holds: Callable[[], T], within_s: float = LONG_S) -> T:
        deadline = time.monotonic() + within_s
        while not (value := holds()):
            outputs = "\n".join(self.output(name)[-2000:] for name in self.fleets)
            assert time.monotonic() < deadline, (self.registry.replicas(), outputs)
            time.sleep(0.02)
        return value

    def row(self, replica: str) -> ReplicaRow | None:
        return next((row for row in self.registry.replicas() if row.name == replica), None)

    def until_healthy(self, *replicas: str, after: ReplicaRow | None = None) -> ReplicaRow:
        """Waits until replicas serve, at another address than `after` if it is given."""
        url = after.url if after is not None else None
        for replica in replicas:
            found = self.until(
                lambda replica=replica: (
                    (row := self.row(replica)) is not None and row.state == "healthy" and row.url != url and row
                )
            )
        assert isinstance(found, ReplicaRow)
        return found

    def engine(self, replica: str) -> int:
        """Process id of a replica's server."""
        row = self.row(replica)
        assert row is not None
        port = row.url.rpartition(":")[2]
        for pid in descendants(os.getpid()):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"tools.testing.fake_vllm.server" in command and port.encode() in command and b"--grace" not in command:
                return pid
        raise AssertionError(f"no server listens on {port}")

    def sample(self, row: ReplicaRow, max_tokens: int) -> list[Completion]:
        return self._ask(
            row, lambda client: client.generate([5, 6], n=1, max_tokens=max_tokens, stop_token_ids=[], timeout_s=60)
        )

    def until_busy(self, row: ReplicaRow) -> None:
        """Waits until a replica has a request in work."""
        self.until(lambda: self._ask(row, lambda client: client.num_requests()) > 0)

    def _ask(self, row: ReplicaRow, question: Callable[[VllmClient], Awaitable[T]]) -> T:
        async def ask() -> T:
            async with aiohttp.ClientSession() as session:
                token = FleetKeys(self.registry.folder / KEYS_FOLDER).token("inference", row.url, row.start)
                return await question(VllmClient(row.url, session, token=token))

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    directory = tmp_path_factory.mktemp("run")
    model = make_model(directory / "model", 0)
    text = served_config("run", directory, directory / "model", serving=SERVING)
    (directory / "config.toml").write_text(text)
    store = WeightStore(directory / "weights", "run")
    VersionWriter(store).publish(tensors_of(model).items(), step=0, golden=golden_of(model))
    before = set(descendants(os.getpid()))
    world = Run(directory, ReplicaRegistry(store.root / "replicas"))
    world.serve("a")
    yield world
    for process in world.fleets.values():
        process.kill()
        process.wait(LONG_S)
    world.until(lambda: set(descendants(os.getpid())) <= before)


def test_a_killed_and_a_hung_server_are_replaced_and_the_other_serves_on(run: Run):
    other, first = run.until_healthy("a-1"), run.until_healthy("a-0")
    os.kill(run.engine("a-0"), signal.SIGKILL)
    started = time.monotonic()
    second = run.until_healthy("a-0", after=first)
    print(f"killed: healthy again after {time.monotonic() - started:.1f} s")
    os.kill(run.engine("a-0"), signal.SIGSTOP)
    started = time.monotonic()
    run.until_healthy("a-0", after=second)
    print(f"stopped: healthy again after {time.monotonic() - started:.1f} s (hang_s = 4)")
    assert run.row("a-1") is not None
    assert run.row("a-1").url == other.url  # type: ignore[union-attr]
    lost = [r["reason"] for r in read_metrics(run.directory / "metrics.jsonl") if r["event"] == "replica_lost"]
    assert "its process ended with status 137" in lost[0]
    assert "serving.hang_s = 4" in lost[1]


def test_orders_are_acknowledged_or_refused(run: Run):
    folder, waits = run.registry.folder, Waits()
    book = OrderBook(folder, choose_fleet(folder, ""))
    status = give_order(book, waits, replicas=3, restart=False, wait_s=LONG_S)
    assert (status.fleet, status.wanted, status.doing) == ("a", 3, "")
    run.until_healthy("a-2")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(status_table(run.registry, time.time()))
    assert [line.split()[:4] for line in console.export_text().splitlines()[1:]] == [
        [f"a-{index}", "a", "healthy", "1"] for index in range(3)
    ]
    give_order(book, waits, replicas=2, restart=False, wait_s=LONG_S)
    assert run.row("a-2") is None
    with pytest.raises(FleetToolError, match=r"refuses: 0 replicas are fewer than serving.min_healthy allows \(1\)"):
        give_order(book, waits, replicas=0, restart=False, wait_s=0)
    with pytest.raises(FleetToolError, match=r"expected --fleet to name one of \['a'\], got 'b'"):
        choose_fleet(folder, "b")


def test_a_rolling_restart_loses_no_request(run: Run):
    before = {name: run.until_healthy(name) for name in ("a-0", "a-1")}
    failures: list[BaseException] = []
    answered, stop = 0, threading.Event()

    def sample_on() -> None:
        nonlocal answered
        while not stop.wait(0.01):
            try:
                run.sample(run.registry.ready()[0], 10)
                answered += 1
            except (ReplicaError, IndexError) as error:
                failures.append(error)

    worker = threading.Thread(target=sample_on)
    worker.start()
    book = OrderBook(run.registry.folder, "a")
    give_order(book, Waits(), replicas=None, restart=True, wait_s=LONG_S)
    stop.set()
    worker.join(LONG_S)
    assert not failures
    assert answered > 5
    assert all(run.until_healthy(name).url != row.url for name, row in before.items())


def test_a_second_fleet_joins_and_leaves_with_its_answers_finished(run: Run):
    second = run.serve("b", "serving.replicas=1")
    row = run.until_healthy("b-0")
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(run.sample, row, 100)
        run.until_busy(row)
        second.send_signal(signal.SIGTERM)
        started = time.monotonic()
        run.until(lambda: (row := run.row("b-0")) is None or row.state == "draining")
        assert [row.fleet for row in run.registry.ready()] == ["a", "a"]
        (answer,) = answering.result(LONG_S)
        assert len(answer.tokens) == 100  # it was let finish
        assert second.wait(LONG_S) == 0
        print(f"drained and ended in {time.monotonic() - started:.1f} s")
    assert run.row("b-0") is None


def test_a_fleet_that_is_killed_takes_its_servers_along_and_the_next_one_takes_over(run: Run):
    before = {name: run.until_healthy(name) for name in ("a-0", "a-1")}
    engines = [run.engine(name) for name in before]
    clash = subprocess.run(
        [sys.executable, "-m", "tools.serve", "--config", str(run.directory / "config.toml"), "--name", "a"],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        cwd=REPOSITORY,
    )
    assert clash.returncode == os.EX_CONFIG
    assert "fleet a is in use by process" in clash.stderr
    run.fleets["a"].kill()
    run.fleets["a"].wait(LONG_S)
    started = time.monotonic()
    run.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in engines))
    run.serve("a")
    for name, row in before.items():
        run.until_healthy(name, after=row)
    print(f"killed controller: all healthy again after {time.monotonic() - started:.1f} s")


def test_a_second_signal_ends_everything_at_once(run: Run):
    row = run.until_healthy("a-0")
    engines = [run.engine("a-0"), run.engine("a-1")]
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(run.sample, row, 2000)
        run.until_busy(row)
        run.fleets["a"].send_signal(signal.SIGTERM)
        run.until(lambda: (found := run.row("a-0")) is not None and found.state == "draining")
        started = time.monotonic()
        run.fleets["a"].send_signal(signal.SIGTERM)
        assert run.fleets["a"].wait(LONG_S) == 130
        assert time.monotonic() - started < 0.8 * DRAIN_S
        assert answering.exception(LONG_S) is not None
    assert not any(Path(f"/proc/{pid}").exists() for pid in engines)
    assert run.registry.replicas() == []
