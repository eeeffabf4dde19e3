"""Payloads of the queue in object storage: read as they were put, deleted when no row needs them, and never lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving_bridge.queue import QueueError, TrajectoryQueue
from serving_bridge.queue.blob_objects import BlobObjects
from serving_bridge.queue.blobs import Blob, BlobError
from serving_bridge.queue.payloads import require_one_folder
from serving_bridge.storage import StorageError, StorageSetupError
from tests.support.memory_objects import MemoryObjects
from tests.support.s3 import S3, Fault
from tests.support.trajectories import make_group

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]

URL = "s3://bucket/run/blobs"


def opened(database: Path, *, storage_timeout_s: float = 30.0) -> TrajectoryQueue:
    return TrajectoryQueue(database, blobs=URL, blob_bytes=16, storage_timeout_s=storage_timeout_s)


def keys(s3: S3) -> list[str]:
    return [one["Key"] for one in s3.client().list_objects_v2(Bucket="bucket").get("Contents", [])]


def test_a_group_goes_through_storage_and_is_deleted_once_it_is_acknowledged(s3: S3, tmp_path: Path) -> None:
    groups = [make_group(f"run/{i}", seed=i, rewards=[0.0, 1.0]) for i in range(3)]
    worker, learner = opened(tmp_path / "state.db"), opened(tmp_path / "state.db")
    s3.faults = [Fault("503", "PUT", times=1), Fault("lost answer", "PUT", times=1)]
    worker.producer.put([(i, group) for i, group in enumerate(groups)])
    assert len(keys(s3)) == 1
    s3.faults = [Fault("truncate", "GET", times=1), Fault("reset", "DELETE", times=1)]
    learner.consumer.take_over()
    leased = learner.consumer.lease_groups(3, trained_version=1, max_staleness=100)
    assert [group[0].group_id for group in leased.groups] == ["run/0", "run/1", "run/2"]
    assert all((got.tokens == want.tokens).all() for got, want in zip(leased.groups[1], groups[1], strict=True))
    ids = [group[0].group_id for group in groups]
    learner.consumer.mark_trained(ids, completed_steps=1, trained_version=1)
    learner.consumer.acknowledge(ids)
    assert keys(s3) == []
    assert [fault.times for fault in s3.faults] == [0, 0]
    worker.close()
    learner.close()


def test_storage_that_does_not_answer_is_no_damaged_group(s3: S3, tmp_path: Path) -> None:
    queue = opened(tmp_path / "state.db", storage_timeout_s=0.2)
    queue.producer.put([(0, make_group("run/0", seed=0, rewards=[0.0, 1.0]))])
    s3.faults = [Fault("503", "GET")]
    queue.consumer.take_over()
    with pytest.raises(StorageError, match=r"failed at reading .*store\.storage_timeout_s = 0\.2"):
        queue.consumer.lease_groups(1, trained_version=1, max_staleness=100)
    s3.faults = []
    queue.consumer.take_over()
    queue.consumer.recover([], completed_steps=0, prompt_cursor=1)
    assert len(queue.consumer.lease_groups(1, trained_version=1, max_staleness=100).groups) == 1
    assert queue.admin.overview().dead == []
    queue.close()


def test_a_missing_bucket_is_told_when_the_queue_is_used(s3: S3, tmp_path: Path) -> None:
    queue = TrajectoryQueue(tmp_path / "state.db", blobs="s3://nowhere/blobs", blob_bytes=16)
    with pytest.raises(StorageSetupError, match=r"s3://nowhere/blobs, writing .*there is no such bucket"):
        queue.producer.put([(0, make_group("run/0", seed=0, rewards=[0.0, 1.0]))])
    queue.close()


@pytest.fixture
def memory() -> MemoryObjects:
    return MemoryObjects(URL)


def test_what_was_changed_or_deleted_is_refused_by_name(memory: MemoryObjects) -> None:
    blobs = BlobObjects(memory)
    first, second = blobs.write([b"12345", b"678"])
    with blobs.reader(5) as read:
        assert (read(first), read(second)) == (b"12345", b"678")
        memory.held[first.file] = b"12345x78"
        assert read(first) == b"12345"
        with pytest.raises(BlobError, match=r"s3://bucket/run/blobs is damaged: the 3 bytes from 5"):
            read(second)
        memory.held.clear()
        with pytest.raises(BlobError, match=rf"{first.file} is not in s3://bucket/run/blobs \(store\.blobs\)"):
            read(first)
        with pytest.raises(BlobError, match="is no name of a blob"):
            read(Blob("../secret", 0, 1, first.hash))


def test_orphans_are_deleted_by_the_time_in_their_names_and_nothing_else_is(memory: MemoryObjects) -> None:
    now = [1_000_000.0]
    blobs = BlobObjects(memory, clock=lambda: now[0])
    blobs.identity()
    (old,) = blobs.write([b"old"])
    (wanted,) = blobs.write([b"wanted"])
    now[0] += 100
    (young,) = blobs.write([b"young"])
    assert {name: written_s for name, _, written_s in blobs.files()}[old.file] == 1_000_000.0
    memory.held["of-another"] = b""
    assert blobs.sweep({wanted.file}, before_s=now[0] - 50) == 1
    assert set(memory.held) == {wanted.file, young.file, "id", "of-another"}
    blobs.release([young.file, "id", "../x"])
    assert set(memory.held) == {wanted.file, "id", "of-another"}


def test_hosts_with_another_place_are_told_apart(memory: MemoryObjects, tmp_path: Path) -> None:
    queue = TrajectoryQueue(tmp_path / "state.db", blobs=tmp_path / "blobs")
    require_one_folder(queue.database, BlobObjects(memory))
    require_one_folder(queue.database, BlobObjects(memory))
    with pytest.raises(QueueError, match=r"s3://other on this host is not the folder"):
        require_one_folder(queue.database, BlobObjects(MemoryObjects("s3://other")))
    memory.held["id"] = b"?"
    with pytest.raises(BlobError, match=r"blobs/id is damaged"):
        BlobObjects(memory).identity()
