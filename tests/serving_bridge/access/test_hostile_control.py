"""Small records between processes, written by somebody else: left out, and never followed, waited for or believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from learner_jax.checkpoints.manifest import ITEM, CheckpointError, read_manifest
from serving_bridge.fleet.orders import FleetStatus, OrderBook
from serving_bridge.routing.registry import ReplicaRegistry, read_record
from serving_bridge.telemetry.metrics_log import MetricsTail
from serving_bridge.vllm.worker_status import WorkerReport, merge
from tools.testing.fuzz.control import _CHECKPOINT

NOW_S = 1000.0


@pytest.fixture
def registry(tmp_path: Path) -> ReplicaRegistry:
    registry = ReplicaRegistry(tmp_path / "registry", clock=lambda: NOW_S)
    registry.report("r", url="http://127.0.0.1:8000", state="healthy", version=3, step=2)
    registry.report_requests("w", {"r": (1, 2)})
    return registry


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8:80",
        "http://0.0.0.0:80",
        "http://[2001:4860:4860::8888]:80",
        "https://127.0.0.1",
        "http://127.0.0.1:8000/collect?x=",
        "http://user:password@127.0.0.1",
        "http://127.0.0.1#@evil",
        "http://127.0.0.1\n",
        "http://a b",
        "file:///etc/passwd",
        7,
    ],
)
def test_an_address_is_a_server_nearby_and_nothing_more(registry: ReplicaRegistry, url: Any) -> None:
    assert [row.name for row in registry.ready()] == ["r"]
    change(registry.folder / "r.json", url=url)
    assert registry.ready() == registry.replicas() == []


def test_a_replica_without_an_address_yet_is_seen_and_takes_no_requests(registry: ReplicaRegistry) -> None:
    change(registry.folder / "r.json", url="")
    assert [row.name for row in registry.replicas()] == ["r"]
    assert registry.ready() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "other"},
        {"name": "../r"},
        {"version": -2},
        {"version": 2**31},
        {"step": 10**30},
        {"step": True},
        {"heartbeat_s": -1},
        {"heartbeat_s": 1e300},
        {"state": "\x1b[2J"},
        {"reason": "x" * 100_000},
        {"colour": "red"},
    ],
)
def test_a_row_out_of_its_bounds_is_left_out(registry: ReplicaRegistry, fields: dict[str, Any]) -> None:
    change(registry.folder / "r.json", **fields)
    assert registry.replicas() == []


def test_a_row_of_the_future_is_not_believed_for_ever(registry: ReplicaRegistry) -> None:
    change(registry.folder / "r.json", heartbeat_s=NOW_S + 29)
    assert len(registry.ready()) == 1
    change(registry.folder / "r.json", heartbeat_s=NOW_S + 1e6)
    assert registry.ready() == []


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "endless", "deep"])
@pytest.mark.parametrize("file", ["r.json", "requests/w.json", "fleets/f.orders.json", "fleets/f.status.json"])
@pytest.mark.timeout(30)
def test_what_is_no_small_file_is_left_out(registry: ReplicaRegistry, file: str, kind: str) -> None:
    book = OrderBook(registry.folder, "f")
    book.order("1", replicas=2)
    book.report(FleetStatus("f", 2, "1", "", "", NOW_S))
    path = registry.folder / file
    path.unlink()
    make: dict[str, Callable[[], Any]] = {
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "endless": lambda: (path.touch(), os.truncate(path, 2**40)),
        "deep": lambda: path.write_text("[" * 500_000),
    }
    make[kind]()
    readers: dict[str, Callable[[], Any]] = {
        "r.json": registry.ready,
        "requests/w.json": registry.all_request_totals,
        "fleets/f.orders.json": book.orders,
        "fleets/f.status.json": book.status,
    }
    assert not readers[file]()


def test_writers_write_through_no_link_and_what_readers_take(
    registry: ReplicaRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda num_bytes: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (registry.folder / ".r.json.guessed").symlink_to(victim)
    registry.report(
        "r",
        url="http://replica-0.local:8000",
        state="failed",
        version=1,
        step=1,
        reason="\x1b[2J\n\ud800" + "x" * 10**6,
    )
    assert victim.read_text() == "precious"
    (row,) = registry.replicas()
    assert row.reason.startswith("\\x1b[2J\\n\\ud800")
    OrderBook(registry.folder, "f").report(FleetStatus("f", 2, "1", "\ud800" + "x" * 10**6, "", NOW_S))
    status = OrderBook(registry.folder, "f").status()
    assert status is not None
    assert status.refused.startswith("\\ud800x")
    for path in [registry.folder, *registry.folder.rglob("*")]:
        assert path.lstat().st_mode & 0o077 == 0 or path.is_symlink(), path


@pytest.mark.parametrize("replicas", [-1, 10**9, 2**70, 1.5, "2", True])
def test_orders_are_for_a_number_of_replicas(registry: ReplicaRegistry, replicas: Any) -> None:
    book = OrderBook(registry.folder, "f")
    book.order("1", replicas=2)
    change(registry.folder / "fleets" / "f.orders.json", replicas=replicas)
    assert book.orders() is None


@pytest.mark.parametrize("totals", [{"r": [-1, 0]}, {"r": [2**70, 0]}, {"r": [True, 0]}, {"../r": [1, 1]}, {"r": [1]}])
def test_totals_are_counts(registry: ReplicaRegistry, totals: Any) -> None:
    assert registry.request_totals("r") == (1, 2)
    change(registry.folder / "requests" / "w.json", totals=totals)
    assert registry.all_request_totals() == {}


def test_a_line_of_metrics_that_is_none_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sound = b'{"t": 1.5, "process": "learner", "event": "step"}\n'
    bad = [
        b"[" * 500_000,
        b'{"event": "step", "a": ' + b"[" * 500_000,
        b'{"t": NaN, "process": "learner", "event": "step"}',
        b'{"t": 1, "process": "learner", "event": "step", "loss": Infinity}',
        b'{"t": "now", "process": "learner", "event": "step"}',
        b'{"t": true, "process": "learner", "event": "step"}',
        b'{"t": 1, "process": 7, "event": "step"}',
        b'{"t": 1, "process": "learner", "event": ["step"]}',
        b'{"t": 1, "process": "learner"}',
        b'{"event": "step", "n": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
        b"",
    ]
    path.write_bytes(sound + b"\n".join(bad) + b"\n" + sound)
    assert [record["event"] for record in MetricsTail(path).read()] == ["step", "step"]


def test_a_line_without_end_takes_no_memory_and_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving_bridge.telemetry.metrics_log._PIECE_BYTES", 256)
    path = tmp_path / "metrics.jsonl"
    sound = b'{"t": 1.5, "process": "learner", "event": "step"}\n'
    path.write_bytes(sound * 50 + b"x" * 1000 + b"\n" + sound * 50)
    tail = MetricsTail(path)
    assert len(tail.read()) == 100
    with path.open("ab") as file:
        file.write(sound[:20])
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(sound[20:])
    assert len(tail.read()) == 1


POSITIONS: dict[str, list[Any]] = {
    "completed_steps": [-1, 2**70, "4", True, None, 1.5],
    "trained_version": [-2, 2**31, "x"],
    "prompt_cursor": [-1, 10**12],
    "kl_coefficient": [-1, 1e300, "x", True],
    "consumed_trajectory_ids": [
        "run/0/0", ["run/0"], ["run/0/x"], ["../../0/0"], [7], ["run/-1/0"], ["\x1b/0/0"], ["run/99999999999/0"], {},
    ],
    "steps_of_versions": [[[5]], [[5, -1]], [[2**31, 1]], [["5", 1]], {"5": 1}, 7],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in POSITIONS.items() for v in values])
def test_every_field_of_a_checkpoint_s_position_is_bounded(tmp_path: Path, field: str, value: Any) -> None:
    file = tmp_path / ITEM / "metadata"
    file.parent.mkdir()
    file.write_text(json.dumps(_CHECKPOINT))
    assert read_manifest(tmp_path).position.consumed_group_ids == ("fuzz/0",)
    file.write_text(json.dumps({**_CHECKPOINT, "position": {**_CHECKPOINT["position"], field: value}}))
    with pytest.raises(CheckpointError, match="damaged manifest"):
        read_manifest(tmp_path)


def test_a_checkpoint_s_manifest_of_any_depth_is_refused(tmp_path: Path) -> None:
    file = tmp_path / ITEM / "metadata"
    file.parent.mkdir()
    for text in ("[" * 500_000, "[]", "7", '{"schema": ' + "[" * 500_000):
        file.write_text(text)
        with pytest.raises(CheckpointError, match="no readable manifest"):
            read_manifest(tmp_path)


def test_what_a_worker_says_is_shown_in_one_line_of_bounded_length() -> None:
    report = WorkerReport("failed", None, "\x1b[2J\n" + "x" * 10**6, False, None, True)
    error = merge([report]).error
    assert error.startswith("\\x1b[2J\\nx")
    assert len(error) < 3000


def test_a_record_is_read_by_its_own_name_only(tmp_path: Path) -> None:
    assert read_record(tmp_path / "missing.json", FleetStatus) is None
    (tmp_path / "-x.json").write_text("{}")
    assert read_record(tmp_path / "-x.json", FleetStatus) is None
