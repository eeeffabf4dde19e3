"""The exporter answers Prometheus at its address, refuses what is not for it, and says which port is taken."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_bridge.metrics import Exporter, ExporterError, advertised, port_of, write_target
from serving_bridge.metrics.exporter import MAX_AT_ONCE


def full_disk() -> bytes:
    raise OSError(28, "No space left on device")


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with Exporter("127.0.0.1", 0, {"/metrics": lambda: b"a 1\n", "/broken": full_disk}) as served:
        yield served


def asked(port: int, path: str, *, method: str = "GET", host: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={"Host": host} if host else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_it_answers_for_its_pages_alone(exporter: Exporter) -> None:
    assert asked(exporter.port, "/metrics") == (200, b"a 1\n")
    assert asked(exporter.port, "/metrics", host=f"localhost:{exporter.port}")[0] == 200
    for path in ("/", "/metrics/", "/metrics?x=1", "/../etc/passwd", "/metrics%00"):
        assert asked(exporter.port, path) == (404, b"there are /metrics, /broken\n")
    assert asked(exporter.port, "/metrics", method="POST")[0] == 501
    assert asked(exporter.port, "/metrics", host="evil.example:80")[0] == 421
    assert asked(exporter.port, "/broken") == (503, b"OSError\n")


def test_scrapes_at_the_same_time_are_bounded() -> None:
    entered, go_on = threading.Semaphore(0), threading.Event()

    def slow() -> bytes:
        entered.release()
        assert go_on.wait(30)
        return b"a 1\n"

    found: list[int] = []
    with Exporter("127.0.0.1", 0, {"/metrics": slow}) as served:
        threads = [
            threading.Thread(target=lambda: found.append(asked(served.port, "/metrics")[0])) for _ in range(MAX_AT_ONCE)
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert entered.acquire(timeout=30)
        assert asked(served.port, "/metrics")[0] == 503
        go_on.set()
        for thread in threads:
            thread.join(30)
    assert found == [200] * MAX_AT_ONCE


def test_a_port_in_use_is_told_with_its_setting() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ExporterError, match=rf"127.0.0.1 port {port}: Address already in use; set telemetry.port"):
            Exporter("127.0.0.1", port, {})
    with pytest.raises(ExporterError, match=r"no\.such\.host\.invalid"):
        Exporter("no.such.host.invalid", 0, {})


def test_addresses_and_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_ADDRESS", "node7")
    assert advertised("0.0.0.0", 9000) == "node7:9000"
    assert advertised("127.0.0.1", 9000) == "127.0.0.1:9000"
    assert advertised("::1", 9000) == "[::1]:9000"
    assert (port_of(0, "rollout-worker-3"), port_of(9100, "rollout-worker-3"), port_of(9100, "learner")) == (
        0,
        9103,
        9100,
    )


def test_the_file_is_one_that_file_sd_reads(tmp_path: Path) -> None:
    path = tmp_path / "telemetry" / "fleet.json"
    write_target(path, "127.0.0.1:9000", {"weir_run": "demo"}, pages=["/metrics", "/replicas"])
    assert json.loads(path.read_text()) == [
        {"targets": ["127.0.0.1:9000"], "labels": {"__metrics_path__": "/metrics", "weir_run": "demo"}},
        {
            "targets": ["127.0.0.1:9000"],
            "labels": {"__metrics_path__": "/replicas", "weir_page": "replicas", "weir_run": "demo"},
        },
    ]
