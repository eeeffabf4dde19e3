"""The weight store in object storage, on a real S3 server: as in a folder, and whole in spite of the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from learner_jax.contracts import GoldenPrompt
from serving_bridge.settings import StoreSettings
from serving_bridge.storage import StorageError
from serving_bridge.weights import (
    Publisher,
    ShelfOptions,
    StoreError,
    VersionHeader,
    VersionWriter,
    WeightIntegrityError,
    WeightStore,
    inspection,
    read_version,
)
from tests.support.s3 import CREDENTIALS, S3, Fault

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]

GOLDEN = [GoldenPrompt(tokens=[1, 2, 3], logprobs=[-0.5, -1.5])]
URL = "s3://bucket/runs/one"
Weights = dict[str, np.ndarray]


def weights(seed: int = 0) -> Weights:
    return {"a": np.random.default_rng(seed).standard_normal((64, 8)).astype(np.float32)}


def stepped(before: Weights, seed: int) -> Weights:
    """As `before`, but for one element in fifty."""
    after = {name: array.copy() for name, array in before.items()}
    for array in after.values():
        array.reshape(-1)[seed::50] += 1e-3
    return after


@pytest.fixture
def open_store(s3: S3, tmp_path: Path) -> Callable[..., WeightStore]:
    """Opens the store as a process of a host does; hosts have caches of their own."""

    def opened(host: str = "host", timeout_s: float = 0.05) -> WeightStore:
        return WeightStore(URL, "run", ShelfOptions(cache=tmp_path / host, cache_bytes=10**6, timeout_s=timeout_s))

    return opened


@pytest.fixture
def store(open_store: Callable[..., WeightStore]) -> WeightStore:
    return open_store()


@pytest.fixture
def publisher(store: WeightStore) -> Iterator[Publisher]:
    made = Publisher(store, StoreSettings(anchor_every=3), log=lambda *_, **__: None)
    yield made
    made.close()


def keys(s3: S3) -> list[str]:
    found = s3.client().list_objects_v2(Bucket="bucket").get("Contents", [])
    return [entry["Key"].removeprefix("runs/one/") for entry in found]


def test_what_is_published_is_read_on_another_host(
    s3: S3, store: WeightStore, open_store: Callable[..., WeightStore], publisher: Publisher
) -> None:
    assert store.versions() == []
    assert store.newest() is None
    published = [weights()]
    for step in range(4):
        manifest = publisher.publish(published[-1].items(), step=step, golden=GOLDEN)
        published.append(stepped(published[-1], step))
    assert manifest.format == "full"
    other = open_store("elsewhere")
    assert other.versions() == [1, 2, 3, 4]
    assert [other.manifest(version).base_version for version in (1, 2, 3, 4)] == [None, 1, 2, None]
    assert other.newest() == manifest
    assert other.manifest(2).golden == GOLDEN
    for version in (1, 2, 3, 4):
        held = read_version(other, version)["a"]
        assert held.words.tobytes() == published[version - 1]["a"].tobytes()
        assert inspection.problem(other, version) is None
    assert keys(s3)[:3] == ["v00000001/claim", "v00000001/manifest.json", "v00000001/weights.safetensors"]
    written = [target.partition("?")[0].split("/")[-1] for method, target in s3.requests if method == "PUT"]
    assert written[:3] == ["claim", "weights.safetensors", "manifest.json"]
    body = s3.client().get_object(Bucket="bucket", Key="runs/one/v00000001/manifest.json")["Body"].read().decode()
    assert not any(secret in body for secret in CREDENTIALS.values())


def test_the_host_that_published_fetches_nothing_and_others_once(
    s3: S3, store: WeightStore, open_store: Callable[..., WeightStore]
) -> None:
    VersionWriter(store).publish(weights().items(), step=0, golden=[])
    read_version(open_store(), 1)
    assert s3.count("GET", "safetensors") == 0
    for _ in range(2):
        read_version(open_store("elsewhere"), 1)
    assert s3.count("GET", "safetensors") == 1


def test_a_bit_that_flips_in_the_cache_is_fetched_anew(
    s3: S3, store: WeightStore, open_store: Callable[..., WeightStore], tmp_path: Path
) -> None:
    VersionWriter(store).publish(weights().items(), step=0, golden=[])
    (cached,) = (tmp_path / "host" / "files").iterdir()
    data = bytearray(cached.read_bytes())
    data[-1] ^= 1
    cached.write_bytes(data)
    assert read_version(open_store(), 1)["a"].words.tobytes() == weights()["a"].tobytes()
    assert s3.count("GET", "safetensors") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            r"s3://.*/v00000001/weights.safetensors, fetched twice: .*sha256",
        ),
        (lambda data: data[:-4], "weights.safetensors: .* has [0-9]+ bytes, expected"),
        (None, "s3://bucket/runs/one/v00000001/weights.safetensors is missing, expected"),
    ],
    ids=["flipped bit", "truncated", "missing"],
)
def test_a_damaged_object_is_named_and_a_whole_copy_heals_it(
    s3: S3,
    open_store: Callable[..., WeightStore],
    publisher: Publisher,
    damage: Callable[[bytes], bytes] | None,
    message: str,
) -> None:
    publisher.publish(weights().items(), step=0, golden=[])
    place = {"Bucket": "bucket", "Key": "runs/one/v00000001/weights.safetensors"}
    if damage is None:
        s3.client().delete_object(**place)
    else:
        s3.client().put_object(**place, Body=damage(s3.client().get_object(**place)["Body"].read()))
    reader = open_store("elsewhere")
    with pytest.raises(WeightIntegrityError, match=message):
        read_version(reader, 1)
    with pytest.raises(WeightIntegrityError, match="v00000001/weights.safetensors"):
        reader.verify(reader.manifest(1))
    assert "weights.safetensors" in str(inspection.problem(reader, 1))
    reader.want_anchor(1, "damaged")
    assert reader.wanted_anchors() == [1]
    publisher._mend_once()
    assert reader.wanted_anchors() == []
    assert reader.has_anchor(1)
    assert inspection.problem(reader, 1) is None
    assert read_version(reader, 1)["a"].words.tobytes() == weights()["a"].tobytes()


def test_publishers_never_share_a_version(open_store: Callable[..., WeightStore]) -> None:
    taken: list[int] = []

    def publish() -> None:
        writer = VersionWriter(open_store(timeout_s=5.0))
        taken.extend(writer.publish(weights().items(), step=0, golden=[]).version for _ in range(3))

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 10))


def test_a_version_that_is_there_is_not_published_over(store: WeightStore) -> None:
    version = VersionWriter(store).publish(weights().items(), step=0, golden=[]).version
    with pytest.raises(StoreError, match=r"manifest.json is there already: another process publishes to s3://bucket/"):
        VersionWriter(store).publish(weights(1).items(), step=1, golden=[], version=version)
    assert store.manifest(version).step == 0, "what another process published is not taken away"


def test_a_store_takes_one_run_only(store: WeightStore) -> None:
    VersionWriter(store).publish(weights().items(), step=0, golden=[])
    with pytest.raises(StoreError, match="belongs to run 'run', expected 'other'; set store.weights"):
        VersionWriter(WeightStore(URL, "other", store.options)).publish(weights().items(), step=0, golden=[])


def test_a_list_that_lags_takes_no_number_twice_and_hides_no_version(
    s3: S3, store: WeightStore, open_store: Callable[..., WeightStore]
) -> None:
    assert store.versions() == []
    s3.faults.append(Fault("stale", "GET", "list-type=2"))
    writer = VersionWriter(store)
    versions = [writer.publish(weights(seed).items(), step=seed, golden=[]).version for seed in range(3)]
    assert versions == [1, 2, 3]
    reader = open_store("elsewhere")
    assert reader.versions() == []
    assert reader.best_manifest(3).step == 2
    assert read_version(reader, 3)["a"].words.tobytes() == weights(2)["a"].tobytes()
    s3.faults.clear()
    assert reader.versions() == [1, 2, 3]


@pytest.mark.parametrize("target", ["weights.safetensors", "manifest.json"])
@pytest.mark.parametrize("kind", ["503", "reset"])
def test_a_failed_upload_leaves_no_version_and_its_number_stays_taken(
    s3: S3, store: WeightStore, target: str, kind: str
) -> None:
    s3.faults.append(Fault(kind, "PUT", target))
    with pytest.raises(StorageError, match=rf"failed at writing v00000001/{target}"):
        VersionWriter(store).publish(weights().items(), step=0, golden=[])
    assert store.versions() == []
    assert keys(s3) == ["v00000001/claim"]
    s3.faults.clear()
    assert VersionWriter(store).publish(weights().items(), step=0, golden=[]).version == 2


def test_faults_that_pass_are_not_noticed(s3: S3, open_store: Callable[..., WeightStore]) -> None:
    store = open_store(timeout_s=20.0)
    for kind, method in (("503", "PUT"), ("reset", "PUT"), ("lost answer", "PUT"), ("500", "GET"), ("truncate", "GET")):
        s3.faults.append(Fault(kind, method, times=1))
    VersionWriter(store).publish(weights().items(), step=0, golden=[])
    assert store.versions() == [1]
    reader = open_store("elsewhere", timeout_s=20.0)
    for kind in ("truncate", "503"):
        s3.faults.append(Fault(kind, "GET", "safetensors", times=1))
    assert read_version(reader, 1)["a"].words.tobytes() == weights()["a"].tobytes()
    assert not any(fault.times for fault in s3.faults)


def test_collect_deletes_manifests_first_and_keeps_what_is_built_on(s3: S3, publisher: Publisher, store: WeightStore):
    now = weights()
    for step in range(7):  # versions 1, 4 and 7 are whole
        publisher.publish(now.items(), step=step, golden=[])
        now = stepped(now, step)
    crashed = VersionWriter(store).claim()
    s3.requests.clear()
    assert store.collect(keep=2, in_use=[2]) == [3]
    assert store.versions() == [1, 2, 4, 5, 6, 7]
    deleted = [target.split("/")[-1].split("?")[0] for method, target in s3.requests if method == "DELETE"]
    assert deleted.index("manifest.json") == 0
    assert deleted.index("claim") == len(deleted) - 1
    assert not any(key.startswith("v00000003") for key in keys(s3))
    assert store.collect(keep=1) == [1, 2, 4, 5, 6]
    assert crashed == 8
    assert inspection.problem(store, 7) is None
    assert VersionWriter(store).publish(now.items(), step=9, golden=[]).version == 9


def test_a_full_disk_of_the_host_names_the_cache(store: WeightStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serving_bridge.weights.object_shelf.write_safetensors", full)
    with pytest.raises(StorageError, match=r"no space for 2048 bytes in .*/host, .* set store.cache to a larger disk"):
        VersionWriter(store).publish(weights().items(), step=0, golden=[])
    assert store.versions() == []


def test_a_reader_in_another_process_is_told_how_to_open_the_store(store: WeightStore) -> None:
    told = store.variables({"AWS_ACCESS_KEY_ID": "k", "HOME": "/home/u", "OPENAI_API_KEY": "x"})
    assert told.keys() == {"AWS_ACCESS_KEY_ID", "WEIR_STORE_CACHE", "WEIR_STORE_CACHE_BYTES", "WEIR_STORE_TIMEOUT_S"}
    assert ShelfOptions.of_environment(told) == store.options
    assert ShelfOptions.of_environment({}) == ShelfOptions()
    assert WeightStore("/a/folder", "run").variables(told) == {}


def test_an_older_version_is_published_again(store: WeightStore) -> None:
    writer = VersionWriter(store)
    for seed in range(2):
        writer.publish(weights(seed).items(), step=seed, golden=GOLDEN)
    assert inspection.republish(store, 1).version == 3
    assert read_version(store, 3)["a"].words.tobytes() == weights(0)["a"].tobytes()
    assert VersionHeader(0, []).version is None
