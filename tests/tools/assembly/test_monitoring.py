"""A process of a run serves what it logs, tells Prometheus where, and says which setting names a taken port."""

from __future__ import annotations

import atexit
import json
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import Config
from serving_bridge.metrics import ExporterError, Role
from serving_bridge.processes import free_port
from serving_bridge.telemetry import MetricsLog
from tests.conftest import REPOSITORY
from tools.assembly import RunPaths, build_keys, build_queue, build_registry, run_paths
from tools.assembly.monitoring import port_findings, watched

DEMO = REPOSITORY / "configs/demo.toml"

Serve = Callable[..., MetricsLog]


def config_of(folder: Path, *changes: str) -> tuple[Config, RunPaths]:
    config = load_config(DEMO, [f"run.directory={folder}", *changes])
    return config, run_paths(config)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves a process until the test ends, as the process would until it ends."""
    ends: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", lambda end, *given: ends.append(lambda: end(*given)))
    logs: list[MetricsLog] = []

    def serve(role: Role, process: str, *changes: str) -> MetricsLog:
        config, paths = config_of(tmp_path, *changes)
        logs.append(MetricsLog(paths.metrics, role))
        return watched(logs[-1], config, paths, role, process)

    yield serve
    for end in ends:
        end()
    for log in logs:
        log.close()
    assert not list(tmp_path.glob("telemetry/*")), "a process that ended is nobody's to scrape"


def target(folder: Path, process: str) -> list[dict[str, object]]:
    return list(json.loads((folder / "telemetry" / f"{process}.json").read_text()))


def page(folder: Path, process: str, path: str = "/metrics") -> dict[str, float]:
    """Series -> value, from the address that the process told."""
    (address,) = target(folder, process)[0]["targets"]
    text = urllib.request.urlopen(f"http://{address}{path}", timeout=10).read().decode()
    rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def test_what_is_logged_is_served_with_the_settings_and_the_process_itself(serve: Serve, tmp_path: Path) -> None:
    log = serve("learner", "learner", "learner.steps=7")
    log.write("step", step=1, reward=0.5, num_tokens=10)
    found = page(tmp_path, "learner")
    assert (found["weir_learner_reward_mean"], found["weir_learner_tokens_total"]) == (0.5, 10.0)
    assert found["weir_settings_steps"] == 7.0
    assert found["process_resident_memory_bytes"] > 1e6
    (only,) = target(tmp_path, "learner")
    assert only["labels"] == {
        "__metrics_path__": "/metrics",
        "weir_run": "demo",
        "weir_role": "learner",
        "weir_process": "learner",
    }


def test_failures_of_loggers_are_counted(serve: Serve, tmp_path: Path) -> None:
    log = serve("rollout", "rollout-worker-0")
    log.write_here("logger", logger="x", error="y")
    assert page(tmp_path, "rollout-worker-0")["weir_logger_failures_total"] == 1.0


def test_the_queue_is_looked_at_once_it_is_there(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve("train", "train")
    found = page(tmp_path, "train")
    assert found["weir_queue_up"] == 0.0
    assert "weir_queue_ready_groups" not in found
    assert not (tmp_path / "state.db").exists(), "a look makes nothing"
    build_queue(*config_of(tmp_path)).close()
    assert page(tmp_path, "train")["weir_queue_up"] == 0.0, "within five seconds it does not look again"
    monkeypatch.setattr("tools.assembly.monitoring._QUEUE_EVERY_S", 0.0)
    serve("train", "train-again")
    found = page(tmp_path, "train-again")
    assert (found["weir_queue_up"], found["weir_queue_ready_groups"], found["weir_queue_dead_groups"]) == (1, 0, 0)


def test_a_fleet_passes_on_its_own_replicas_alone(serve: Serve, tmp_path: Path) -> None:
    config, paths = config_of(tmp_path)
    registry = build_registry(paths)
    build_keys(config, paths).make()
    for name, fleet in (("a-0", "a"), ("b-0", "b")):
        registry.report(name, url="http://127.0.0.1:1", state="healthy", version=1, step=1, fleet=fleet, start="s")
    serve("fleet", "fleet-a")
    assert [entry["labels"]["__metrics_path__"] for entry in target(tmp_path, "fleet-a")] == ["/metrics", "/replicas"]
    assert page(tmp_path, "fleet-a", "/replicas") == {}
    assert page(tmp_path, "fleet-a")["weir_fleet_page_failures_total"] == 1.0


def test_nothing_is_served_where_that_is_set(serve: Serve, tmp_path: Path) -> None:
    serve("learner", "learner", "telemetry.metrics=false")
    assert not (tmp_path / "telemetry").exists()


def test_a_port_in_use_is_found_before_anything_starts(serve: Serve, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ExporterError, match=rf"port {port}: Address already in use; set telemetry.port.learner"):
            serve("learner", "learner", f"telemetry.port.learner={port}")
        for part in ("train", "learner", "warm_start"):
            (found,) = port_findings(part, config_of(tmp_path, f"telemetry.port.learner={port}")[0])
            assert str(found).startswith(f"telemetry.port.learner: expected port {port} of 127.0.0.1 to be free, got")
        (found,) = port_findings("serve", config_of(tmp_path, f"telemetry.port.fleet={port}")[0])
        assert found.setting == "telemetry.port.fleet"
        off = config_of(tmp_path, f"telemetry.port.fleet={port}", "telemetry.metrics=false")[0]
        assert not list(port_findings("serve", off))
    assert not list(port_findings("train", config_of(tmp_path)[0]))


def test_the_ports_of_all_hosts_are_looked_at_where_one_job_starts_them(tmp_path: Path) -> None:
    port = free_port(2)
    with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", port + 1)):
        config = config_of(tmp_path, f"telemetry.port.learner={port}", "learner.hosts.count=2")[0]
        found = [str(finding) for finding in port_findings("train", config)]
    assert [re.findall(r"expected port (\d+)", text) for text in found] == [[str(port)], [str(port + 1)]]
