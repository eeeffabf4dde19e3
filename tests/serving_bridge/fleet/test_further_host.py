"""A further host of a replica joins each start of the first one once, and ends what no start wants."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.fleet import further_host
from serving_bridge.fleet.further_host import FurtherHost
from serving_bridge.fleet.meeting import Meeting, MeetingPoint
from serving_bridge.settings import ServingSettings
from serving_bridge.vllm.server_options import Access, further_host_command, server_command, server_environment

SETTINGS = ServingSettings(
    max_model_len=64, tensor_parallel_size=2, pipeline_parallel_size=2, hosts_per_replica=2, host="10.0.0.4"
)
SLEEPS = "import time; print('here', flush=True); time.sleep(60)"


class World:
    """A host with a stand-in for vLLM's workers, which notes its command lines."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program, self.started, self.events = SLEEPS, [], []  # type: ignore[var-annotated]
        monkeypatch.setattr(further_host, "further_host_command", self._command)
        self.point = MeetingPoint(folder / "replicas", "fleet-0-0")
        self.log_path = folder / "logs" / "fleet-0-0.1.log"
        self.host = FurtherHost(
            SETTINGS,
            self.point,
            number=1,
            model_dir=folder / "model",
            store=folder,
            log_path=self.log_path,
            log=lambda event, **fields: self.events.append((event, fields)),
            platform="cpu",
        )

    def _command(self, *arguments: Any) -> list[str]:
        self.started.append(arguments[3:])
        return [sys.executable, "-c", self.program]

    def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, self.events
            time.sleep(0.02)
            self.host.look()

    def runs(self) -> bool:
        return self.host._process is not None and self.host._process.poll() is None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    found = World(tmp_path, monkeypatch)
    yield found
    found.host._end()


def test_it_waits_for_a_start_joins_it_and_leaves_with_it(world: World) -> None:
    world.host.look()
    assert not world.started
    world.point.call("a1", "10.0.0.3", 4000)
    world.until(lambda: world.log_path.exists() and "here" in world.log_path.read_text())
    world.host.look()
    assert world.started == [(("10.0.0.3", 4000), 1)]
    world.point.end()
    world.host.look()
    assert not world.runs()
    assert [event for event, _ in world.events] == ["part_started"]


def test_another_start_takes_the_place_of_the_one_before(world: World) -> None:
    world.point.call("a1", "10.0.0.3", 4000)
    world.host.look()
    first = world.host._process
    world.point.call("a2", "10.0.0.3", 4001)
    world.host.look()
    assert first is not None
    assert first.poll() is not None
    assert world.runs()
    assert [port for (_, port), _ in world.started] == [4000, 4001]


def test_a_part_that_ends_is_told_and_joins_no_start_twice(world: World) -> None:
    world.program = "import sys; print('no such device'); sys.exit(3)"
    world.point.call("a1", "10.0.0.3", 4000)
    world.until(lambda: len(world.events) == 2)
    for _ in range(3):
        world.host.look()
    assert len(world.started) == 1
    assert world.events[1] == ("part_ended", {"number": 1, "status": 3, "said": "no such device"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"replica":"fleet-0-1","start":"a1","address":"10.0.0.3","port":1}',
        '{"replica":"fleet-0-0","start":"a1","address":"10.0.0.3 --model x","port":1}',
        '{"replica":"fleet-0-0","start":"a1","address":"10.0.0.3","port":0}',
        '{"replica":"fleet-0-0","start":"../x","address":"10.0.0.3","port":1}',
    ],
)
def test_a_damaged_file_is_no_start(tmp_path: Path, text: str) -> None:
    point = MeetingPoint(tmp_path, "fleet-0-0")
    point.call("a1", "10.0.0.3", 1)
    assert point.current() == Meeting("fleet-0-0", "a1", "10.0.0.3", 1)
    (file,) = tmp_path.rglob("*.json")
    file.write_text(text)
    assert point.current() is None


def test_the_hosts_of_a_replica_are_told_of_each_other() -> None:
    first = server_command(Path("/m"), SETTINGS, "gpu", 8000, meeting=("10.0.0.3", 4000))
    further = further_host_command(Path("/m"), SETTINGS, "gpu", ("10.0.0.3", 4000), 1)
    together = ["--nnodes", "2", "--master-addr", "10.0.0.3", "--master-port", "4000", "--node-rank"]
    assert first[first.index("--nnodes") :][:8] == [*together, "0"]
    assert further[further.index("--nnodes") :] == [*together, "1", "--headless"]
    assert further[1:4] == ["-P", "-m", "serving_bridge.vllm_plugin.further_host"]
    for name in ("--tensor-parallel-size", "--pipeline-parallel-size", "--weight-transfer-config", "--dtype"):
        assert first[first.index(name) + 1] == further[further.index(name) + 1]
    environment = server_environment({"HOME": "/h"}, SETTINGS, "gpu", Access("", "", ""), Path("/s"))
    assert environment["VLLM_HOST_IP"] == "10.0.0.4"
    assert "GLOO_SOCKET_IFNAME" not in environment


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tensor_parallel_size": 3, "hosts_per_replica": 2}, "tensor_parallel_size x pipeline_parallel_size is 3"),
        ({"tensor_parallel_size": 2, "hosts_per_replica": 2, "replicas": 2}, "start more fleets"),
        ({"engine_args": {"nnodes": 2}}, "set serving.hosts_per_replica"),
        ({"engine_args": {"pipeline_parallel_size": 2}}, "set serving.pipeline_parallel_size"),
    ],
)
def test_hosts_that_do_not_share_alike_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServingSettings(max_model_len=64, **given)
