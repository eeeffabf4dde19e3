"""Payloads in files: written whole, checked, deleted with their groups, and swept after a crash."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serving_bridge.queue.blobs import Blob, BlobError, BlobFolder
from serving_bridge.queue.bounds import QueueBounds, QueueError, QueueFullError
from serving_bridge.queue.payloads import blobs_beside
from serving_bridge.queue.queue import TrajectoryQueue
from tests.support.disk_effects import effects
from tests.support.queue_engines import PACE, Clock, Place, clock, execute, fresh_url, lease, place, put, train
from tests.support.trajectories import make_group

__all__ = ["clock", "effects", "place"]  # fixtures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def queue(place: Place, folder: Path) -> TrajectoryQueue:
    return place.open(blobs=folder, blob_bytes=2000)


def put_big(queue: TrajectoryQueue, *indices: int) -> int:
    return put(queue, *indices, answer_tokens=200)


def files(folder: Path) -> list[Path]:
    """Those that are no spares."""
    return sorted(folder / name for name, _, _ in BlobFolder(folder).files())


def spares(folder: Path) -> list[Path]:
    return sorted(folder / "spare" / name for name, _, _ in BlobFolder(folder).spares())


def read(folder: Path, blob: Blob) -> bytes:
    with BlobFolder(folder).reader() as read:
        return read(blob)


def test_a_payload_and_its_name_are_on_the_disk_before_anyone_is_told(folder: Path, effects: list[str]) -> None:
    blobs = BlobFolder(folder)
    (first,) = blobs.write([b"12345"])
    assert f"sync {folder.parent.name}" in effects[:-2]  # the folder itself was new
    assert effects[-2:] == [f"sync {first.file} 5", f"sync {folder.name}"]
    effects.clear()
    (second,) = blobs.write([b"123456"])
    assert effects == [f"sync {second.file} 6", f"sync {folder.name}"]


def test_so_is_the_name_of_a_folder_that_another_process_made(folder: Path, effects: list[str]) -> None:
    folder.mkdir()  # it may have died before it synced that
    BlobFolder(folder).write([b"12345"])
    assert f"sync {folder.parent.name}" in effects


@pytest.mark.parametrize("is_known", [False, True])
def test_the_number_of_a_folder_is_on_the_disk_before_anyone_is_told(
    is_known: bool, folder: Path, effects: list[str]
) -> None:
    if is_known:  # to a process that may have died before it synced anything
        BlobFolder(folder).identity()
        effects.clear()
    number = BlobFolder(folder).identity()
    assert f"sync {folder.parent.name}" in effects
    assert effects[-1] == f"sync {folder.name}"
    assert BlobFolder(folder).identity() == number


def test_big_payloads_share_a_file_and_small_ones_are_rows(queue: TrajectoryQueue, folder: Path, place: Place) -> None:
    queue.producer.put([(i, make_group(f"run/{i}", answer_tokens=200 if i else 2)) for i in range(3)])
    (file,) = files(folder)
    assert execute(queue, "SELECT count(*) FROM payloads") == [(1,)]
    report = queue.consumer.lease_groups(5, trained_version=1, max_staleness=1)
    assert [len(group[0].tokens) for group in report.groups] == [5, 203, 203]
    assert len(place.open(blobs=folder).consumer.read(["run/1"]).groups["run/1"][0].tokens) == 203
    assert queue.admin.overview().num_blobs == 2
    assert file.stat().st_size == queue.admin.overview().states[1].num_bytes - len(
        execute(queue, "SELECT payload FROM payloads")[0][0]
    )


def test_files_end_with_the_last_of_their_groups(queue: TrajectoryQueue, folder: Path) -> None:
    put_big(queue, 0)
    put_big(queue, 1, 2)
    trained = lease(queue, 1)
    train(queue, trained)
    assert len(files(folder)) == 2
    queue.consumer.acknowledge(trained)
    assert len(files(folder)) == 1
    queue.consumer.bury(lease(queue, 1)[0], "kept with what it holds")
    queue.consumer.lease_groups(1, trained_version=99, max_staleness=1)
    assert len(files(folder)) == 1
    queue.admin.requeue()
    assert lease(queue, 1) == ["run/1"]
    queue.consumer.recover(["run/1"], completed_steps=1, prompt_cursor=3)
    assert files(folder) == []


def test_a_file_stays_for_the_last_group_that_needs_it(queue: TrajectoryQueue, folder: Path) -> None:
    put_big(queue, 0, 1, 2)
    (shared,) = files(folder)
    for done, trained in enumerate([["run/1"], ["run/0"]]):
        lease(queue)
        train(queue, trained, step=1 + done)
        queue.consumer.acknowledge(trained)
        assert files(folder) == [shared]
    report = queue.consumer.lease_groups(5, trained_version=1, max_staleness=5)
    held = queue.consumer.read(["run/2"]).groups["run/2"]
    np.testing.assert_array_equal(held[0].tokens, make_group("run/2", seed=2, answer_tokens=200)[0].tokens)
    assert report.num_dropped_stale == 0
    train(queue, ["run/2"], step=3)
    queue.consumer.acknowledge(["run/2"])
    assert files(folder) == []


def test_files_of_dropped_groups_stay_until_that_is_durable(queue: TrajectoryQueue, folder: Path) -> None:
    put_big(queue, 0)
    assert queue.consumer.lease_groups(1, trained_version=99, max_staleness=1).num_dropped_stale == 1
    assert len(files(folder)) == 1
    queue.consumer.acknowledge([])
    assert files(folder) == []


def test_ended_files_are_written_again_under_new_names(queue: TrajectoryQueue, folder: Path) -> None:
    put_big(queue, 0, 1)
    (first,) = files(folder)
    old = [Blob(*row) for row in execute(queue, "SELECT blob, blob_offset, num_bytes, blob_hash FROM groups")]
    number = first.stat().st_ino
    trained = lease(queue)
    train(queue, trained)
    queue.consumer.acknowledge(trained)
    assert [path.stat().st_ino for path in spares(folder)] == [number]
    put_big(queue, 2)
    (second,) = files(folder)
    assert (second.stat().st_ino, spares(folder)) == (number, [])
    assert second.name != first.name
    with pytest.raises(BlobError, match=f"{first.name} is not in"):
        read(folder, old[0])
    assert lease(queue) == ["run/2"]


def test_spares_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving_bridge.queue.blobs._SPARE_BYTES", 25)
    blobs = BlobFolder(folder)
    names = [blobs.write([bytes(10)])[0].file for _ in range(4)]
    blobs.release(names[:3])
    assert (len(files(folder)), len(spares(folder))) == (1, 2)
    blobs.release([names[0], "never there", names[3]])
    assert (len(files(folder)), len(spares(folder))) == (0, 2)


def test_only_files_of_the_folder_that_are_called_as_blobs_are_released(folder: Path) -> None:
    blobs = BlobFolder(folder)
    (kept,) = blobs.write([b"12345"])
    for name in ("outside", "../outside", "x" * 32, "A" * 32):
        (folder / name).touch()
        blobs.release([name])
        assert (folder / name).exists(), name
    assert spares(folder) == []
    blobs.release([kept.file])
    assert len(spares(folder)) == 1


def test_places_that_no_write_gave_are_refused(folder: Path) -> None:
    (blob,) = BlobFolder(folder).write([b"12345"])
    for changed, said in (
        ({"file": "../" + blob.file}, "is no name of a blob"),
        ({"offset": -1}, "5 bytes from -1, expected 1 to 5"),
        ({"offset": True}, "5 bytes from True"),
        ({"offset": 2**48}, "expected 1 to 5"),
        ({"num_bytes": 0}, "0 bytes from 0"),
        ({"num_bytes": 6}, "6 bytes from 0"),
        ({"hash": "x"}, "has hash x|has hash 'x'"),
        ({"hash": "0" * 32}, "is damaged"),
    ):
        with pytest.raises(BlobError, match=said), BlobFolder(folder).reader(5) as read:
            read(dataclasses.replace(blob, **changed))
    with BlobFolder(folder).reader(5) as read:
        assert read(blob) == b"12345"


def test_the_files_of_a_queue_lie_beside_its_database() -> None:
    assert blobs_beside("a/state.db") == Path("a/state.db-blobs")
    assert blobs_beside("sqlite:///a/state.db") == Path("a/state.db-blobs")
    assert [blobs_beside(name) for name in (":memory:", "postgresql://h/d")] == [None, None]


def test_writers_at_once_never_share_a_spare_file(folder: Path) -> None:
    payloads = [[bytes([i]) * (1000 + i)] * 3 for i in range(40)]
    blobs = BlobFolder(folder)
    blobs.release([blobs.write([b"old" * 5000])[0].file for _ in range(20)])
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda part: BlobFolder(folder).write(part), payloads))
    assert len({blob.file for part in written for blob in part}) == 40
    assert spares(folder) == []
    assert [[read(folder, blob) for blob in part] for part in written] == payloads


def test_a_put_that_adds_nothing_leaves_no_file(place: Place, folder: Path) -> None:
    queue = place.open(blobs=folder, blob_bytes=2000, bounds=QueueBounds(max_groups=1))
    put_big(queue, 0)
    assert put_big(queue, 0) == 0
    with pytest.raises(QueueFullError):
        put_big(queue, 1)
    assert (len(files(folder)), len(spares(folder))) == (1, 1)
    assert lease(queue) == ["run/0"]


def test_a_deleted_dead_letter_takes_its_file_along(place: Place, folder: Path) -> None:
    queue = place.open(blobs=folder, blob_bytes=2000, bounds=QueueBounds(max_dead=0))
    put_big(queue, *queue.producer.claim_prompts("w", 1, PACE, served_step=0))
    queue.consumer.bury(lease(queue)[0], "x")
    queue.consumer.acknowledge([])
    assert (queue.admin.dead_letters(), files(folder)) == ([], [])


def test_damaged_and_missing_files_become_dead_letters_with_the_reason(queue: TrajectoryQueue, folder: Path) -> None:
    for index in range(3):
        put_big(queue, index)
    damaged_file, missing_file = (
        name for (name,) in execute(queue, "SELECT blob FROM groups ORDER BY sequence LIMIT 2")
    )
    content = (folder / damaged_file).read_bytes()
    (folder / damaged_file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / missing_file).unlink()
    assert lease(queue) == ["run/2"]
    (damaged, missing) = queue.admin.dead_letters()
    assert damaged[0] == "run/0"
    assert "is damaged" in damaged[1]
    assert missing[0] == "run/1"
    assert missing[1].startswith(f"blob {missing_file} is not in {folder}: all hosts must see the same folder")


def test_a_process_without_the_folder_says_so(queue: TrajectoryQueue, place: Place) -> None:
    put_big(queue, 0)
    other = place.open(blobs=None) if place.url.startswith("postgresql") else place.open(blobs=place.url + "-none")
    assert lease(other) == []
    assert "blob " in other.admin.dead_letters()[0][1]


@pytest.mark.postgres
def test_a_host_that_sees_another_folder_is_refused(postgres_url: str, tmp_path: Path) -> None:
    url = fresh_url(postgres_url)
    first = TrajectoryQueue(url, blobs=tmp_path / "shared" / "blobs")
    again = TrajectoryQueue(url, blobs=tmp_path / "shared" / "blobs")
    with pytest.raises(QueueError, match=r"other on this host is not the folder .* was begun with.*store\.blobs"):
        TrajectoryQueue(url, blobs=tmp_path / "other")
    TrajectoryQueue(url).close()  # it may look on without one
    assert files(tmp_path / "shared" / "blobs") == []
    first.close()
    again.close()


def test_processes_that_ask_at_once_agree_on_a_folders_identity(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: BlobFolder(folder).identity(), range(32)))
    assert len(found) == 1
    assert 0 < found.pop() < 2**63
    assert [path.name for path in folder.iterdir()] == [".id"]


def test_a_folder_without_hard_links_has_an_identity_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert BlobFolder(folder).identity() == BlobFolder(folder).identity()


def test_orphans_are_swept_by_age_and_wanted_files_never(queue: TrajectoryQueue, folder: Path, clock: Clock) -> None:
    put_big(queue, 0)
    blobs = BlobFolder(folder)
    old = blobs.write([b"a process died before the row"])[0].file
    young = blobs.write([b"its row may be on the way"])[0].file
    clock.now_s = 10_000.0
    for path in files(folder):
        os.utime(path, (0, clock.now_s if path.name == young else 1000.0))
    queue.consumer.recover([], completed_steps=0, prompt_cursor=0)
    assert not blobs.holds(old)
    assert blobs.holds(young)
    assert lease(queue) == ["run/0"]


def test_a_file_that_was_swept_before_its_row_came_is_written_again(
    queue: TrajectoryQueue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_lose(self: BlobFolder, payloads: Sequence[bytes], write=BlobFolder.write) -> list[Blob]:
        blobs = write(self, payloads)
        monkeypatch.undo()
        self.release([blob.file for blob in blobs])
        return blobs

    monkeypatch.setattr(BlobFolder, "write", write_and_lose)
    put_big(queue, 0, 1)
    assert lease(queue) == ["run/0", "run/1"]


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
    blobs.release([blobs.write([b"spare"])[0].file])

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for _ in range(2):
        with pytest.raises(OSError, match=f"No space left on device: '{folder}"):
            blobs.write([b"test"])
    assert files(folder) == spares(folder) == []


def test_reading_checks_the_content(folder: Path) -> None:
    blobs = BlobFolder(folder)
    first, second = blobs.write([b"first", b"second"])
    assert (read(folder, first), read(folder, second)) == (b"first", b"second")
    assert next(iter(blobs.files()))[:2] == (first.file, 11)
    (folder / first.file).write_bytes(b"firstsecond"[:-1])
    assert read(folder, first) == b"first"
    with pytest.raises(BlobError, match=f"{second.file} in .* is damaged: the 6 bytes from 5 are not what was written"):
        read(folder, second)
