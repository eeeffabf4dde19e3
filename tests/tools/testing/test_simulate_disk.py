"""The simulated disk forgets what was not synced, names and contents each for themselves, and nothing else."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from learner_jax.runtime import sync_path, write_durably, write_whole
from tools.testing.simulate.disk import Disk, Effect
from tools.testing.simulate.shared import SharedDatabase


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def left_after(root: Path, change: str, seeds: int = 40) -> set[tuple[str, ...]]:
    """What files a power failure may leave: (name, content) after `change`, from a synced file that holds "old"."""
    found = set()
    for seed in range(seeds):
        for path in root.iterdir():
            path.unlink()
        (root / "file").write_text("old")
        disk = Disk(root, lambda effect: None)
        with disk.watched():
            CHANGES[change](root / "file")
        disk.fail(random.Random(seed))
        found.add(tuple(f"{path.name}={path.read_text()}" for path in sorted(root.iterdir())))
    return found


CHANGES = {
    "durably": lambda path: write_durably(path, "new!"),
    "whole": lambda path: write_whole(path, "new!"),
    "without its name": lambda path: write_durably(path, "new!", sync_name=False),
    "deleted": lambda path: path.unlink(),
    "deleted for good": lambda path: (path.unlink(), sync_path(path.parent)),
}


def test_what_was_synced_under_its_name_is_left(root: Path):
    assert left_after(root, "durably") == {("file=new!",)}
    assert left_after(root, "deleted for good") == {()}


def test_a_name_that_was_not_synced_is_the_old_or_the_new_one(root: Path):
    assert {("file=old",), ("file=new!",)} <= left_after(root, "without its name")
    assert left_after(root, "deleted") == {("file=old",), ()}


def test_content_that_was_not_synced_may_be_cut_under_the_new_name(root: Path):
    found = {names[-1] for names in left_after(root, "whole", seeds=200)}
    assert found == {"file=old", "file=", "file=ne", "file=new!"}


def test_folders_and_what_is_in_them_are_left_where_both_were_synced(root: Path):
    disk = Disk(root, lambda effect: None)
    with disk.watched():
        for name in ("kept", "lost"):
            (root / name).mkdir()
            write_durably(root / name / "file", name)
            assert not disk.survives(root / name / "file")
        descriptor = os.open(root, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        (root / "lost").rename(root / "gone")
        assert disk.survives(root / "kept" / "file")
        assert not disk.survives(root / "gone" / "file")


def test_an_effect_is_told_of_before_and_after_and_what_raises_before_does_not_happen(root: Path):
    seen: list[Effect] = []

    def told(effect: Effect) -> None:
        seen.append(effect)
        if effect.kind == "unlink" and effect.path.name == "file":
            raise InterruptedError

    with Disk(root, told).watched():
        write_durably(root / "file", "new")
        with pytest.raises(InterruptedError):
            (root / "file").unlink()
    done = [(effect.kind, effect.path.name) for effect in seen if effect.done]
    assert done == [("sync", seen[0].path.name), ("rename", "file"), ("sync", "disk")]
    assert not seen[-1].done
    assert (root / "file").read_text() == "new"


def test_a_database_forgets_transactions_since_the_last_one_that_was_synced():
    database, found = SharedDatabase(), set()
    for seed in range(20):
        for value, synced in ((1, True), (2, False), (3, False)):
            database.write(
                lambda session, value=value: session.execute(
                    "UPDATE progress SET value = ? WHERE key = 'finished'", (value,)
                ),
                synced=synced,
            )
        database.fail(random.Random(seed))
        ((value,),) = database.real.read(lambda s: s.execute("SELECT value FROM progress WHERE key = 'finished'"))
        found.add(value)
    assert found == {1, 3}
    assert database.is_synced
    database.real.close()
