"""The replicas' rows: who takes requests, whom to believe for how long, and what workers counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving_bridge.routing.registry import ReplicaRegistry, is_nearby


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> ReplicaRegistry:
    return ReplicaRegistry(tmp_path, max_silence_s=30.0, clock=clock)


def report(registry: ReplicaRegistry, name: str, state: str, *, url: str = "http://127.0.0.1:80") -> None:
    registry.report(name, url=url, state=state, version=3, step=2, fleet="f", reason="\x1bwhy", start="s")


def ready(registry: ReplicaRegistry) -> list[str]:
    return [row.name for row in registry.ready()]


def test_a_row_comes_back_as_it_was_written(registry: ReplicaRegistry) -> None:
    report(registry, "a", "healthy")
    (row,) = registry.replicas()
    assert (row.name, row.url, row.state, row.version, row.step) == ("a", "http://127.0.0.1:80", "healthy", 3, 2)
    assert (row.heartbeat_s, row.fleet, row.reason, row.start) == (1000.0, "f", "\\x1bwhy", "s")
    registry.remove("a")
    registry.remove("a")
    assert registry.replicas() == []


def test_suspects_take_requests_where_nothing_is_healthy(registry: ReplicaRegistry) -> None:
    for name, state in (("a", "stale"), ("b", "suspect"), ("c", "healthy"), ("d", "suspect"), ("e", "draining")):
        report(registry, name, state)
    report(registry, "f", "healthy", url="")  # it listens nowhere yet
    assert ready(registry) == ["c"]
    registry.remove("c")
    assert ready(registry) == ["b", "d"]
    registry.remove("b")
    registry.remove("d")
    assert ready(registry) == []


def test_a_row_is_believed_as_long_before_as_after_its_time(registry: ReplicaRegistry, clock: Clock) -> None:
    report(registry, "a", "healthy")
    (row,) = registry.replicas()
    for now_s, state in ((970.0, "healthy"), (1030.0, "healthy"), (969.0, "silent"), (1031.0, "silent")):
        clock.now_s = now_s
        assert registry.state(row) == state, now_s
        assert bool(registry.ready()) is (state == "healthy")


def test_rows_that_no_controller_wrote_are_left_out(registry: ReplicaRegistry, tmp_path: Path) -> None:
    report(registry, "a", "healthy")
    (tmp_path / "b.json").write_bytes((tmp_path / "a.json").read_bytes())
    (tmp_path / "c.json").write_text("{")
    far = (tmp_path / "a.json").read_text().replace('"a"', '"d"').replace("127.0.0.1", "8.8.8.8")
    (tmp_path / "d.json").write_text(far)
    report(registry, "e", "stopped", url="")
    assert [row.name for row in registry.replicas()] == ["a", "e"]


def test_what_workers_counted_is_added_up(registry: ReplicaRegistry, tmp_path: Path) -> None:
    registry.report_requests("w", {"a": (1, 20), "b": (3, 40)})
    registry.report_requests("v", {"a": (500, 6000)})
    (tmp_path / "requests" / "u.json").write_bytes((tmp_path / "requests" / "w.json").read_bytes())
    (tmp_path / "requests" / "t.json").write_text("{")
    assert registry.all_request_totals() == {"a": (501, 6020), "b": (3, 40)}
    assert [registry.request_totals(name) for name in ("a", "never")] == [(501, 6020), (0, 0)]
    registry.report_requests("w", {"a": (2, 21)})
    assert registry.all_request_totals() == {"a": (502, 6021)}


def test_prompts_go_to_names_and_private_addresses_alone() -> None:
    near = ("http://127.0.0.1:1", "http://10.0.0.3", "http://[::1]:1", "http://host.local:80")
    assert [url for url in near if not is_nearby(url)] == []
    far = ("http://8.8.8.8:1", "http://0.0.0.0:1", "http://[2001:4860::1]", "http://", "")
    assert [url for url in far if is_nearby(url)] == []
