"""Weights, payloads and checkpoints on Google's and Azure's storage: whole, in whatever way requests go wrong."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from serving_bridge.queue import TrajectoryQueue
from serving_bridge.settings import StoreSettings
from serving_bridge.storage import CheckpointObjects, FsspecObjects, StorageError, StorageTimeouts
from serving_bridge.weights import Publisher, ShelfOptions, WeightStore, inspection, read_version
from tests.support.clouds import SECRET, Cloud
from tests.support.s3 import Fault, Kind
from tests.support.trajectories import make_group

#: one server of each kind for all tests on it
pytest_plugins = ["tests.support.clouds_fixtures"]

TIMEOUTS = StorageTimeouts(give_up_s=60.0, connect_s=1.0, read_s=1.0)
KINDS: tuple[Kind, ...] = ("503", "500", "reset", "truncate", "lost answer", "hang")


class Weather(Fault):
    """One request in eight goes wrong, in any way."""

    def __init__(self, seed: int) -> None:
        super().__init__("503")
        self._random = random.Random(seed)
        self.hits = dict.fromkeys(KINDS, 0)

    def is_for(self, method: str, target: str) -> bool:
        if self._random.random() > 1 / 8:
            return False
        # One that hangs takes a second of the test, so it comes seldom.
        (self.kind,) = self._random.choices(KINDS, (4, 4, 4, 4, 4, 1))
        self.hits[self.kind] += 1
        return True


def arrays(version: int) -> dict[str, np.ndarray]:
    """Differ in every tenth element from those of the version before."""
    made = {name: np.random.default_rng(5).standard_normal((64, 8)).astype(np.float32) for name in ("a", "b")}
    for step in range(version):
        for array in made.values():
            array.reshape(-1)[step::10] += 1e-3
    return made


def weights_go_round(cloud: Cloud, tmp_path: Path) -> None:
    """Full and sparse versions are published, and read on a host that has nothing of them."""

    def opened(host: str) -> WeightStore:
        return WeightStore(
            f"{cloud.url}/weights", "run", ShelfOptions(cache=tmp_path / host, cache_bytes=10**6, timeout_s=60)
        )

    publisher = Publisher(opened("learner"), StoreSettings(anchor_every=3), log=lambda *_, **__: None)
    try:
        for version in range(1, 5):
            publisher.publish(arrays(version).items(), step=version, golden=[])
    finally:
        publisher.close()
    other = opened("replica")
    assert other.versions() == [1, 2, 3, 4]
    assert [other.manifest(version).base_version for version in (1, 2, 3, 4)] == [None, 1, 2, None]
    for version in (1, 2, 3, 4):
        for name, held in read_version(other, version).items():
            assert held.words.tobytes() == arrays(version)[name].tobytes()
        assert inspection.problem(other, version) is None


def payloads_go_round(cloud: Cloud, tmp_path: Path) -> None:
    """Groups are put, leased, acknowledged; storage is empty then."""
    queue = TrajectoryQueue(tmp_path / "state.db", blobs=f"{cloud.url}/blobs", blob_bytes=16, storage_timeout_s=60)
    groups = [make_group(f"run/{i}", seed=i, rewards=[0.0, 1.0]) for i in range(3)]
    queue.producer.put([(i, group) for i, group in enumerate(groups)])
    assert FsspecObjects(f"{cloud.url}/blobs", timeouts=TIMEOUTS).list() != {}
    queue.consumer.take_over()
    leased = queue.consumer.lease_groups(3, trained_version=1, max_staleness=100)
    assert all((got.tokens == want.tokens).all() for got, want in zip(leased.groups[1], groups[1], strict=True))
    ids = [group[0].group_id for group in groups]
    queue.consumer.mark_trained(ids, completed_steps=1, trained_version=1)
    queue.consumer.acknowledge(ids)
    left = FsspecObjects(f"{cloud.url}/blobs", timeouts=TIMEOUTS).list()
    assert set(left) <= {"id"}
    queue.close()


def checkpoints_go_round(cloud: Cloud, tmp_path: Path) -> None:
    """A copy is made, found by another host and brought back byte by byte; only the newest two are kept."""

    def opened() -> CheckpointObjects:
        return CheckpointObjects(FsspecObjects(f"{cloud.url}/checkpoints", timeouts=TIMEOUTS), run="run", keep=2)

    for step in (2, 4, 6):
        folder = tmp_path / "made" / str(step)
        for name in ("state/d/0a1b", "state/_METADATA", "hashes.json", "state/empty"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("" if name.endswith("empty") else f"{step} {name}" * 99)
        opened().keep(folder, step=step, life=1)
    newest = opened().newest()
    assert newest is not None
    assert newest.step == 6
    opened().fetch(newest, tmp_path / "fetched")
    made, fetched = tmp_path / "made" / "6", tmp_path / "fetched"
    files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    assert all((made / path).read_bytes() == (fetched / path).read_bytes() for path in files)
    kept = FsspecObjects(f"{cloud.url}/checkpoints", timeouts=TIMEOUTS).list("data/")
    assert {key.split("/")[1].split("-")[1] for key in kept} == {"4", "6"}


def test_all_three_go_round(cloud: Cloud, tmp_path: Path) -> None:
    cloud.server.faults += [Fault("503", cloud.writes, times=2), Fault("lost answer", cloud.writes, times=1)]
    weights_go_round(cloud, tmp_path)
    payloads_go_round(cloud, tmp_path)
    checkpoints_go_round(cloud, tmp_path)
    assert [fault.times for fault in cloud.server.faults] == [0, 0]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
def test_in_any_weather_all_three_go_round(cloud: Cloud, tmp_path: Path, seed: int) -> None:
    cloud.server.faults.append(weather := Weather(seed))
    weights_go_round(cloud, tmp_path)
    payloads_go_round(cloud, tmp_path)
    checkpoints_go_round(cloud, tmp_path)
    assert sum(weather.hits.values()) > 10, weather.hits


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_each_request_waits_out_each_fault(cloud: Cloud, tmp_path: Path, kind: Kind) -> None:
    """The first request of each method goes wrong, whatever is asked for."""
    objects = FsspecObjects(cloud.url, timeouts=TIMEOUTS)
    (tmp_path / "file").write_bytes(b"12345678")

    def in_spite_of_it() -> None:
        cloud.server.faults[:] = [Fault(kind, method, times=1) for method in ("GET", "HEAD", "PUT", "POST", "DELETE")]

    in_spite_of_it()
    objects.put("a", b"one")
    in_spite_of_it()
    assert objects.put_new("b", b"two")
    in_spite_of_it()
    objects.put_file("c", tmp_path / "file")
    in_spite_of_it()
    assert objects.get("a", max_bytes=9) == b"one"
    in_spite_of_it()
    assert objects.get_range("c", 2, 3) == b"345"
    in_spite_of_it()
    assert objects.size("b") == 3
    in_spite_of_it()
    assert objects.list() == {"a": 3, "b": 3, "c": 8}
    in_spite_of_it()
    objects.delete(["a", "b", "c"])
    cloud.server.faults.clear()
    assert objects.list() == {}


# The packages hand whole parts to aiohttp, which would rather have a file.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.soak
def test_an_upload_in_parts_that_breaks_off_leaves_no_object(cloud: Cloud, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"")
    os.truncate(path, 70 << 20)
    objects = FsspecObjects(cloud.url, timeouts=StorageTimeouts(give_up_s=0.1))
    # A part that is not the first: Google's upload goes on at a second URL, Azure's blocks have ids.
    cloud.server.faults.append(
        Fault("503", "POST", "upload_id") if cloud.writes == "POST" else Fault("503", "PUT", "block")
    )
    with pytest.raises(StorageError, match=r"failed at writing big \(73400320 bytes\)") as caught:
        objects.put_file("big", path)
    assert SECRET not in str(caught.value)
    assert objects.list() == {}
    assert objects.size("big") is None
    cloud.server.faults.clear()
    objects.put_file("big", path)
    assert objects.list() == {"big": 70 << 20}
