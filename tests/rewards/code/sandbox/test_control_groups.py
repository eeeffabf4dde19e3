"""Control groups of both versions, on folders that look like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.code.sandbox.control_groups import ControlGroups


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "cgroup.procs").write_text("")
    return path


def test_version_1_has_two_hierarchies(tmp_path: Path) -> None:
    for name in ("memory", "pids"):
        folder(tmp_path / name)
    groups = ControlGroups(1000, 9, tmp_path)
    assert groups.kind == "v1"
    made = groups.make()
    memory, pids = made.folders
    assert (memory / "memory.limit_in_bytes").read_text() == "1000"
    assert (pids / "pids.max").read_text() == "9"
    made.take(77)
    assert [(path / "cgroup.procs").read_text() for path in made.folders] == ["77", "77"]


def test_version_2_has_one(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("")
    groups = ControlGroups(1000, 9, tmp_path)
    assert groups.kind == "v2"
    (made,) = groups.make().folders
    assert [(made / name).read_text() for name in ("memory.max", "pids.max", "memory.swap.max")] == ["1000", "9", "0"]
    assert (made.parent / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_there_may_be_none(tmp_path: Path) -> None:
    groups = ControlGroups(1000, 9, tmp_path)
    assert groups.kind == ""
    made = groups.make()
    made.take(77)
    made.remove()
    assert made.folders == ()


def test_groups_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("")
    stale = tmp_path / "weir-code" / "4194399-abc"
    alive = tmp_path / "weir-code" / "1-abc"
    for path in (stale, alive):
        path.mkdir(parents=True)
    ControlGroups(1000, 9, tmp_path)
    assert (stale.exists(), alive.exists()) == (False, True)


def test_a_group_that_can_not_be_limited_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.procs").write_text("")
    real = Path.write_text

    def write(self: Path, text: str) -> int:
        if self.name == "pids.max":
            raise PermissionError
        return real(self, text)

    monkeypatch.setattr(Path, "write_text", write)
    assert ControlGroups(1000, 9, tmp_path).kind == ""
