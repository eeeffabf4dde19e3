"""Folders of checkpoints that are copied whole, to places that are not there yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from etils import epath

from learner_jax.conversion import convert
from learner_jax.conversion.checkpoint_reader import _copy_tree, copy_file

FILES = {
    "0/_CHECKPOINT_METADATA": b"all is there",
    "0/state/d/file": b"values",
    "0/state/commit_success.txt": b"",
    "0/manifest/metadata": b"{}",
    "model/config.json": b"\x00" * 3_000_000,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "source"


def held(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_tree_is_copied_with_its_folders(folder: Path, tmp_path: Path) -> None:
    _copy_tree(folder, tmp_path / "a" / "b")
    assert held(tmp_path / "a" / "b") == FILES


def test_what_makes_a_checkpoint_whole_is_copied_last(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []

    def noted(source: epath.Path, target: epath.Path) -> None:
        copied.append(target.name)
        copy_file(source, target)

    monkeypatch.setattr(convert, "copy_file", noted)
    convert._upload_checkpoint(folder, epath.Path(tmp_path / "a" / "b"))
    assert held(tmp_path / "a" / "b") == FILES
    assert sorted(copied[-2:]) == ["_CHECKPOINT_METADATA", "commit_success.txt"]
