"""The machine that a job would start on: ports, disks, open files, clock, memory and terminal."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving_bridge.checks import machine as machine_checks
from serving_bridge.processes import free_port


def test_a_port_in_use_may_heal(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        (finding,) = machine_checks.port_findings("127.0.0.1", port, 1)
    assert (finding.setting, finding.may_heal) == ("serving.port", True)
    assert f"port {port} of 127.0.0.1 to be free" in str(finding)
    assert list(machine_checks.port_findings("127.0.0.1", port, 1)) == []


def test_disks_without_room_say_how_much_is_needed(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    needs = [
        ("run.directory", tmp_path / "a", free * 0.6, free * 0.6),
        ("store.weights", tmp_path / "b", 0.0, free * 0.7),
    ]
    (told,) = machine_checks.disk_findings(needs)
    assert (told.setting, told.severity) == ("run.directory, store.weights", "warning")
    (told,) = machine_checks.disk_findings([*needs, ("store.blobs", tmp_path, free * 0.6, free * 0.6)])
    assert told.severity == "error"
    assert list(machine_checks.disk_findings([("x", tmp_path, 1.0, 1.0)])) == []


def test_limits_of_open_files_clock_memory_and_terminal() -> None:
    (few,) = machine_checks.open_files_findings(least=10, most=10**9)
    assert few.severity in ("warning", "error")
    assert "ulimit -n: expected at least 1000000128" in str(few)
    assert list(machine_checks.open_files_findings(least=1, most=1)) == []
    (early,) = machine_checks.clock_findings(0.0, built_s=1e9, server_s=None, lease_s=60)
    assert "expected a time after 2001-09-09" in str(early)
    (apart,) = machine_checks.clock_findings(1000.0, built_s=0.0, server_s=1100.0, lease_s=60)
    assert "100 s behind it" in str(apart)
    assert apart.severity == "error"
    assert list(machine_checks.clock_findings(1000.0, built_s=0.0, server_s=1001.0, lease_s=60)) == []
    assert list(machine_checks.memory_findings(2.0, 1.0))
    assert not list(machine_checks.memory_findings(2.0, None))
    assert not list(machine_checks.memory_findings(2.0, 2.0))
    assert {f.setting for f in machine_checks.terminal_findings(is_terminal=True, columns=20, encoding="latin-1")} == {
        "terminal"
    }


def test_a_range_of_ports_is_looked_at_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port(2) + 1
    with socket.create_server(("127.0.0.1", port)):
        (last,) = machine_checks.port_findings("127.0.0.1", port - 1, 2)
        assert f"port {port} of" in str(last)
        assert list(machine_checks.port_findings("127.0.0.1", port - 1, 1)) == []
        assert list(machine_checks.port_findings("127.0.0.1", 0, 9)) == []


@pytest.mark.parametrize(
    ("least", "most", "told"),
    [(10, 10, None), (10, 11, ("warning", "0.0 GB free in time")), (11, 11, ("error", "0.0 GB free at once"))],
)
def test_a_disk_has_room_to_the_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float, most: float, told: tuple[str, str] | None
) -> None:
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    found = list(machine_checks.disk_findings([("run.directory", tmp_path, least, most)]))
    assert [(finding.severity, finding.expected) for finding in found] == ([told] if told else [])


@pytest.mark.parametrize(
    ("soft", "severity"), [(228, None), (227, "warning"), (218, "warning"), (217, "error"), (-1, None)]
)
def test_open_files_are_as_many_as_connections_and_some_to_spare(
    monkeypatch: pytest.MonkeyPatch, soft: int, severity: str | None
) -> None:
    monkeypatch.setattr(machine_checks.resource, "getrlimit", lambda _: (soft, soft))
    found = [finding.severity for finding in machine_checks.open_files_findings(least=90, most=100)]
    assert found == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("server_s", "severity"),
    [(985.0, None), (984.0, "warning"), (940.0, "warning"), (939.0, "error"), (1061.0, "error")],
)
def test_clocks_may_differ_by_a_quarter_of_a_lease(server_s: float, severity: str | None) -> None:
    found = list(machine_checks.clock_findings(1000.0, built_s=1000.0, server_s=server_s, lease_s=60))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert all(("ahead of" if server_s < 1000 else "behind") in finding.got for finding in found)


@pytest.mark.parametrize(
    ("is_terminal", "columns", "encoding", "told"),
    [(True, 60, "utf8", 0), (True, 59, "UTF-8", 1), (True, 60, "latin-1", 1), (False, 10, "latin-1", 0)],
)
def test_a_terminal_is_wide_and_draws(is_terminal: bool, columns: int, encoding: str, told: int) -> None:
    found = machine_checks.terminal_findings(is_terminal=is_terminal, columns=columns, encoding=encoding)
    assert len(list(found)) == told


def test_folders_are_there_or_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert list(machine_checks.folder_findings({"a": tmp_path, "b": tmp_path / "new" / "below"})) == []
    (told,) = machine_checks.folder_findings({"store.weights": tmp_path / "file" / "below"})
    assert (told.setting, told.got) == ("store.weights", f"{tmp_path / 'file'} is a file")
    assert list(machine_checks.file_findings("store.database", tmp_path / "file")) == []
    assert list(machine_checks.file_findings("store.database", tmp_path / "new")) == []
    monkeypatch.setattr(machine_checks.os, "access", lambda *_: False)
    assert [f.got for f in machine_checks.folder_findings({"a": tmp_path, "b": tmp_path / "new"})] == [
        "it is not",
        f"{tmp_path} is not",
    ]
    (told,) = machine_checks.file_findings("store.database", tmp_path / "file")
    assert told.expected == f"{tmp_path / 'file'} to be readable and writable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert list(machine_checks.folder_findings({"store.weights": tmp_path / "a" / "b"}))
