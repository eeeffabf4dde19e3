"""The machine that a job would start on: ports, disks, open files, clock, memory and terminal."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from serving_bridge.checks import machine as machine_checks


def test_a_port_in_use_may_heal(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
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
    assert {f.setting for f in machine_checks.terminal_findings(is_terminal=True, columns=20, encoding="latin-1")} == {
        "terminal"
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert list(machine_checks.folder_findings({"store.weights": tmp_path / "a" / "b"}))
