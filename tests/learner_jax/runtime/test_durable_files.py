"""Files that are replaced whole: what is on the disk in which order, and what a failure leaves behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from learner_jax.runtime import SHARED_MODE, rename_durably, sync_path, sync_tree, write_durably, write_whole
from tests.support.disk_effects import effects

__all__ = ["effects"]  # a fixture

WRITERS = {
    "whole": write_whole,
    "durably": write_durably,
    "durably but for its name": lambda path, content: write_durably(path, content, sync_name=False),
}
Write = Callable[[Path, bytes | str], None]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("whole", ["rename to file"]),
        ("durably but for its name", ["sync .file.RANDOM 5", "rename to file"]),
        ("durably", ["sync .file.RANDOM 5", "rename to file", "sync folder"]),
    ],
)
def test_content_is_on_the_disk_before_the_name(
    tmp_path: Path, effects: list[str], monkeypatch: pytest.MonkeyPatch, kind: str, expected: list[str]
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda num_bytes: "RANDOM")
    (tmp_path / "folder").mkdir()
    WRITERS[kind](tmp_path / "folder" / "file", "fünf")
    assert effects == expected
    assert (tmp_path / "folder" / "file").read_bytes() == "fünf".encode()


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("failing", ["fdopen", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, failing: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(KeyboardInterrupt):
            write(path, b"new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_durably(tmp_path / "file", b"new")
    assert raised.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No space left") as raised:
        sync_path(tmp_path)
    assert raised.value.filename == str(tmp_path)


def test_files_are_for_their_owner_unless_the_umask_decides(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for write in (write_whole, write_durably):
            write(tmp_path / "private", b"")
            write(tmp_path / "shared", b"", mode=SHARED_MODE)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
            assert modes == {"private": 0o600, "shared": 0o640}
    finally:
        os.umask(before)


def test_links_are_replaced_and_their_target_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda num_bytes: "guessed")
    (tmp_path / "target").write_text("old")
    for name in ("file", ".file.guessed"):
        (tmp_path / name).symlink_to(tmp_path / "target")
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "target").read_text() == "old"
    assert not (tmp_path / "file").is_symlink()


def test_a_folder_has_its_new_name_on_the_disk(tmp_path: Path, effects: list[str]) -> None:
    (tmp_path / "part").mkdir()
    rename_durably(tmp_path / "part", tmp_path / "whole")
    assert effects == ["rename to whole", f"sync {tmp_path.name}"]
    assert (tmp_path / "whole").is_dir()


def test_everything_in_a_folder_is_synced_but_nothing_beside_it(tmp_path: Path, effects: list[str]) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for name in ("folder/file", "folder/inner/file2", "beside"):
        (tmp_path / name).write_text("x")
    sync_tree(tmp_path / "folder")
    assert sorted(effects) == ["sync file 1", "sync file2 1", "sync folder", "sync inner"]
