"""Payloads in files: written whole, checked, deleted with their groups, and swept after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving_bridge.blobs import BlobError, BlobFolder
from serving_bridge.queue import QueueBounds, QueueFullError, TrajectoryQueue
from tests.queue_engines import PACE, Clock, Place, clock, execute, lease, place, put, train

__all__ = ["clock", "place"]  # fixtures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def queue(place: Place, folder: Path) -> TrajectoryQueue:
    return place.open(blobs=folder, blob_bytes=2000)


def put_big(queue: TrajectoryQueue, *indices: int) -> int:
    return put(queue, *indices, answer_tokens=200)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_big_payloads_are_files_and_small_ones_rows(queue: TrajectoryQueue, folder: Path, place: Place) -> None:
    put_big(queue, 0)
    put(queue, 1)
    (blob,) = files(folder)
    assert execute(queue, "SELECT count(*) FROM payloads") == [(1,)]
    report = queue.lease_groups(5, trained_version=1, max_staleness=1)
    assert [len(group[0].tokens) for group in report.groups] == [203, 5]
    assert len(place.open(blobs=folder).read(["run/0"]).groups["run/0"][0].tokens) == 203
    assert queue.overview().num_blobs == 1
    assert blob.stat().st_size == queue.overview().states[1].num_bytes - len(
        execute(queue, "SELECT payload FROM payloads")[0][0]
    )


def test_files_end_with_their_groups(queue: TrajectoryQueue, folder: Path) -> None:
    put_big(queue, 0, 1, 2)
    trained = lease(queue, 1)
    train(queue, trained)
    assert len(files(folder)) == 3
    queue.acknowledge(trained)
    assert len(files(folder)) == 2
    queue.bury(lease(queue, 1)[0], "kept with what it holds")
    queue.lease_groups(1, trained_version=99, max_staleness=1)
    assert len(files(folder)) == 1
    queue.requeue()
    assert lease(queue, 1) == ["run/1"]
    queue.recover(["run/1"], completed_steps=1, prompt_cursor=3)
    assert files(folder) == []


def test_a_deleted_dead_letter_takes_its_file_along(place: Place, folder: Path) -> None:
    queue = place.open(blobs=folder, blob_bytes=2000, bounds=QueueBounds(max_dead=0))
    put_big(queue, *queue.claim_prompts("w", 1, PACE, served_step=0))
    queue.bury(lease(queue)[0], "x")
    queue.acknowledge([])
    assert (queue.dead_letters(), files(folder)) == ([], [])


def test_damaged_and_missing_files_become_dead_letters_with_the_reason(queue: TrajectoryQueue, folder: Path) -> None:
    put_big(queue, 0, 1, 2)
    names = [name for (name,) in execute(queue, "SELECT blob FROM groups ORDER BY sequence")]
    whole = BlobFolder(folder).read(names[0])
    (folder / names[0][:2] / names[0]).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (folder / names[1][:2] / names[1]).unlink()
    assert lease(queue) == ["run/2"]
    (damaged, missing) = queue.dead_letters()
    assert damaged[0] == "run/0"
    assert "is damaged" in damaged[1]
    assert missing == ("run/1", f"blob {names[1]} is not in {folder}")


def test_a_process_without_the_folder_says_so(queue: TrajectoryQueue, place: Place) -> None:
    put_big(queue, 0)
    other = place.open(blobs=None) if place.url.startswith("postgresql") else place.open(blobs=place.url + "-none")
    assert lease(other) == []
    assert "blob " in other.dead_letters()[0][1]


def test_orphans_are_swept_by_age_and_wanted_files_never(queue: TrajectoryQueue, folder: Path, clock: Clock) -> None:
    put_big(queue, 0)
    blobs = BlobFolder(folder)
    old, young = blobs.write(b"a process died before the row"), blobs.write(b"its row may be on the way")
    partial = folder / old[:2] / "0123.partial"
    partial.write_bytes(b"cut off")
    clock.now_s = 10_000.0
    for path in files(folder):
        os.utime(path, (0, clock.now_s if path.name == young else 1000.0))
    queue.recover([], completed_steps=0, prompt_cursor=0)
    assert not partial.exists()
    assert not blobs.holds(old)
    assert blobs.holds(young)
    assert lease(queue) == ["run/0"]


def test_a_file_that_was_swept_before_its_row_came_is_written_again(
    queue: TrajectoryQueue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_lose(self: BlobFolder, data: bytes, write=BlobFolder.write) -> str:
        name = write(self, data)
        monkeypatch.undo()
        self.delete([name])
        return name

    monkeypatch.setattr(BlobFolder, "write", write_and_lose)
    put_big(queue, 0)
    assert lease(queue) == ["run/0"]


def test_a_refused_put_can_be_repeated(place: Place, folder: Path) -> None:
    queue = place.open(blobs=folder, blob_bytes=2000, bounds=QueueBounds(max_groups=1))
    put_big(queue, 0)
    with pytest.raises(QueueFullError):
        put_big(queue, 1)
    train(queue, lease(queue))
    assert put_big(queue, 1) == 1
    assert lease(queue) == ["run/1"]


def test_a_cut_off_write_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobFolder(folder)

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    folder.mkdir()
    (folder / "9f").mkdir()
    with pytest.raises(OSError, match="disk full"):
        blobs.write(b"")
    with pytest.raises(OSError, match="disk full"):
        blobs.write(b"test")  # of hash 9f86d0...
    assert files(folder) == []


def test_reading_checks_the_content(folder: Path) -> None:
    blobs = BlobFolder(folder)
    name = blobs.write(b"payload")
    assert blobs.read(name) == b"payload"
    assert next(iter(blobs.files()))[:2] == (name, 7)
    (folder / name[:2] / name).write_bytes(b"Payload")
    with pytest.raises(BlobError, match=f"{name} in .* is damaged: its 7 bytes hash to"):
        blobs.read(name)
