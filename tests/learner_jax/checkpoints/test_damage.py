"""Damage of a checkpoint is named, and the way back works."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from learner_jax.checkpoints import hashes as checkpoint_files
from learner_jax.checkpoints.checkpoints import (
    CheckpointError,
    Checkpoints,
    newest_step,
    restore_parameters,
    verify,
)
from learner_jax.checkpoints.hashes import HASHES
from tests.support.checkpoint_states import (
    assert_equal,
    make_state,
    position,
    restored,
    save,
)


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(folder: Path) -> tuple[Path, str]:
    file = largest(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    return file, "expected content with xxh3_128 [0-9a-f]{32}, got [0-9a-f]{32}"


def cut(folder: Path) -> tuple[Path, str]:
    file = largest(folder)
    size = file.stat().st_size
    os.truncate(file, size - 1)
    return file, f"expected {size} bytes, got {size - 1}"


def lose(folder: Path) -> tuple[Path, str]:
    file = folder / "state" / "manifest.ocdbt"
    size = file.stat().st_size
    file.unlink()
    return file, f"expected {size} bytes, but the file is missing"


def forge(folder: Path) -> tuple[Path, str]:
    file = folder / HASHES
    file.write_text("{")
    return file, "expected a table of hashes, got JSONDecodeError"


@pytest.mark.parametrize("damage", [flip, cut, lose, forge])
def test_damage_is_named_and_the_way_back_works(damage: Callable[[Path], tuple[Path, str]], tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    assert verify(tmp_path, 2) == checkpoint_files.FileCheck(hashed=True)
    file, message = damage(tmp_path / "2")
    assert len(verify(tmp_path, 2).problems) == 1
    for read in (lambda: restored(tmp_path, make_state(0)), lambda: restore_parameters(tmp_path)):
        with pytest.raises(CheckpointError, match=rf"{tmp_path}/2 is damaged: {re.escape(str(file))}: {message}") as e:
            read()
    found = re.search(rf"used is {tmp_path}/1, which is intact: .* run (mv .*), then start", str(e.value))
    assert found
    subprocess.run(found[1], shell=True, check=True)
    state, at = restored(tmp_path, make_state(0))
    assert_equal(state, make_state(1))
    assert at == position(1)
    save(tmp_path, 2)
    assert newest_step(tmp_path) == 2


def test_the_way_back_passes_over_damaged_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4)
    for step in (4, 2):
        flip(tmp_path / str(step))
    (tmp_path / "3" / "manifest" / "metadata").unlink()
    with pytest.raises(CheckpointError, match=rf"used is {tmp_path}/1, .*2\.damaged .*3\.damaged .*4\.damaged"):
        restored(tmp_path, make_state(0))
    (tmp_path / "3" / HASHES).unlink()  # then it is the manifest itself that is missed
    with pytest.raises(CheckpointError, match=rf"3 has no readable manifest: .*; the newest .* is {tmp_path}/1, "):
        restored(tmp_path, make_state(0), step=3)
    flip(tmp_path / "1")
    with pytest.raises(CheckpointError, match="4 is damaged: .* there is no intact one before it"):
        restored(tmp_path, make_state(0))


def test_without_hashes_the_index_of_the_arrays_tells(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    for step in (1, 2, 3):
        (tmp_path / str(step) / HASHES).unlink()
    for file in (tmp_path / "3" / "state" / "d").iterdir():
        file.write_bytes(b"")
    message = rf"3 is damaged: .*; the newest .* is {tmp_path}/2, which is there and readable, but has no hashes"
    with pytest.raises(CheckpointError, match=message) as raised:
        restored(tmp_path, make_state(0))
    assert "tensorstore_spec" not in str(raised.value)
    assert not Checkpoints(tmp_path, keep=9).check(2)
    assert_equal(restored(tmp_path, make_state(0), step=2)[0], make_state(2))


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        restore_parameters(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        restore_parameters(tmp_path)
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"7 does not exist; those there: \[1\]"):
        restored(tmp_path, make_state(0), step=7)
    assert verify(tmp_path, 7).problems
