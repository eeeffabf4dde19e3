"""A second writer of the weight store: what it names is never read, followed or waited for, and found while staging."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import threading
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard

from learner_jax.contracts.weights import MAX_VERSION, ContractError, GoldenPrompt, WeightManifest
from serving_bridge.weights.delta import Encoder, changes
from serving_bridge.weights.files import StoreError, Tensor, content_sha256, entry_of
from serving_bridge.weights.inspection import problem, rows
from serving_bridge.weights.reader import read_path, read_version
from serving_bridge.weights.shelf import MANIFEST_NAME, UPDATE_NAME, WEIGHTS_NAME
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionHeader, VersionWriter

GOLDEN = [GoldenPrompt(tokens=[1, 2, 3], logprobs=[-0.5, -1.5])]
SIZE = 1000


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    store = WeightStore(tmp_path / "weights", "run")
    VersionWriter(store).publish([("a", np.arange(SIZE, dtype=np.float32))], step=1, golden=GOLDEN)
    return store


def rewrite(store: WeightStore, number: int = 1, **changes: Any) -> None:
    """Writes a manifest as JSON with fields changed, whatever they are."""
    path = store.folder(number) / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_file(store: WeightStore, data: bytes, version: int = 1, name: str = WEIGHTS_NAME) -> None:
    """Another file, of which the manifest is true."""
    (store.folder(version) / name).write_bytes(data)
    file = {"name": name, "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(store, version, files=[file])


def refused(store: WeightStore, version: int = 1) -> str:
    """Why a version can't be loaded; by every reader of it, within seconds."""
    said: list[str] = []

    def read() -> None:
        with pytest.raises((StoreError, ContractError)) as caught:
            read_version(store, version)
        said.append(str(caught.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive(), "the reader hangs"
    assert said, "the version was taken"
    assert problem(store, version), "tools.weights takes it"
    return said[0]


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/hostname", "..", ".", "", "a/b", "weights.safetensors\n", "\0", "x" * 300, "\u2025", "-rf"],
)
def test_a_file_is_named_plainly(store: WeightStore, name: str) -> None:
    data = (store.folder(1) / WEIGHTS_NAME).read_bytes()
    (store.root / "outside").write_bytes(data)
    file = {"name": name, "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(store, files=[file])
    assert "not a weight manifest" in refused(store)


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "socket"])
@pytest.mark.parametrize("name", [WEIGHTS_NAME, MANIFEST_NAME])
def test_only_regular_files_are_read(store: WeightStore, what: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.folder(1) / name
    outside = store.root.parent / "outside"
    path.rename(outside)
    match what:
        case "link":
            path.symlink_to(outside)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            monkeypatch.chdir(path.parent)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
    assert "regular file" in refused(store) or name == MANIFEST_NAME
    if name == MANIFEST_NAME:
        assert store.versions() == []


def test_a_folder_that_is_a_link_is_no_version_and_is_not_written_through(store: WeightStore) -> None:
    elsewhere = store.root.parent / "elsewhere"
    store.folder(1).rename(elsewhere)
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    manifest = msgspec.json.decode(before[MANIFEST_NAME], type=WeightManifest)
    store.folder(1).symlink_to(elsewhere)
    assert store.versions() == []
    with pytest.raises(StoreError):
        store.manifest(1)
    tensors = {"a": np.arange(SIZE, dtype=np.float32)}
    with pytest.raises(StoreError, match="is a link"):
        VersionWriter(store).add_anchor(manifest, {name: Tensor.of(value) for name, value in tensors.items()})
    for step in (2, 3):
        VersionWriter(store).publish(tensors.items(), step=step, golden=GOLDEN)
    assert store.versions() == [2, 3]
    store.collect(keep=1)
    assert store.versions() == [3]
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


def test_files_that_are_links_are_replaced_and_not_written_through(store: WeightStore, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    version = VersionWriter(store).claim()
    for name in (WEIGHTS_NAME, f".{MANIFEST_NAME}.{os.getpid()}", MANIFEST_NAME):
        (store.folder(version) / name).symlink_to(victim)
    VersionWriter(store).publish([("a", np.ones(3, np.float32))], step=2, golden=GOLDEN, version=version)
    assert victim.read_text() == "precious"
    np.testing.assert_array_equal(read_version(store, version)["a"].words.view(np.float32), np.ones(3))


@pytest.mark.parametrize("name", ["v99999999999", "v2147483648", "v000000001", "v0000000\u0661", "v-0000001"])
def test_a_number_that_no_token_could_carry_is_no_version(store: WeightStore, name: str) -> None:
    folder = store.root / name
    folder.mkdir()
    (folder / MANIFEST_NAME).write_bytes((store.folder(1) / MANIFEST_NAME).read_bytes())
    assert store.versions() == [1]
    assert VersionWriter(store).publish([("a", np.ones(3, np.float32))], step=2, golden=GOLDEN).version == 2


def test_no_version_is_left_is_said(store: WeightStore) -> None:
    store.folder(MAX_VERSION).mkdir()
    with pytest.raises(StoreError, match="v2147483647 has the highest number; remove it"):
        VersionWriter(store).claim()


FIELDS: dict[str, list[Any]] = {
    "version": [0, -1, 2**31, 2**70, "1", None, True, 1.5],
    "base_version": [-1, 2**31, "x", True],
    "parent": [-1, 2**31],
    "step": [-1, 2**63, 10**30, None],
    "run": ["x" * 1000, "\x1b[2J", 7],
    "content_sha256": ["", "Z" * 64, "0" * 64 + "\n"],
    "num_changed": [-1, 2**60, 5],
    "format": ["sparse", "dense", None],
    "tensors": [
        [],
        [{"name": "a", "shape": [SIZE], "dtype": "float64", "xxh3_128": "0" * 32}],
        [{"name": "a", "shape": [-1], "dtype": "float32", "xxh3_128": "0" * 32}],
        [{"name": "a", "shape": [2**40, 2**40], "dtype": "float32", "xxh3_128": "0" * 32}],
        [{"name": "a", "shape": [1] * 100, "dtype": "float32", "xxh3_128": "0" * 32}],
        [{"name": "a\x1b[2J", "shape": [1], "dtype": "float32", "xxh3_128": "0" * 32}],
        [{"name": "a", "shape": [1], "dtype": "float32", "xxh3_128": "0" * 32}] * 2,
    ],
    "files": [[{"name": "a", "num_bytes": -1, "sha256": "0" * 64}], [{"name": "a", "num_bytes": 2**60, "sha256": "0"}]],
    "golden": [
        [{"tokens": [1, 2], "logprobs": [0.0, 0.0]}],
        [{"tokens": [-1, 2], "logprobs": [0.0]}],
        [{"tokens": [1, 2**31], "logprobs": [0.0]}],
        [{"tokens": [1, 2], "logprobs": [5.0]}],
        [{"tokens": [1, 2], "logprobs": ["NaN"]}],
    ],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in FIELDS.items() for v in values])
def test_every_field_of_a_manifest_is_bounded(store: WeightStore, field: str, value: Any) -> None:
    rewrite(store, **{field: value})
    assert len(refused(store)) < 1000
    assert len(rows(store)) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 10**6,
        b'{"schema": 2, "a": ' + b"[" * 10**6,
        b'{"schema": 2, "a": ' + b'{"a":' * 10**6,
        b"\xff",
        b"",
        b"7",
    ],
)
def test_a_manifest_of_any_bytes_is_refused(store: WeightStore, payload: bytes) -> None:
    (store.folder(1) / MANIFEST_NAME).write_bytes(payload)
    assert "not a weight manifest" in refused(store)


def test_a_manifest_without_end_is_not_read(store: WeightStore) -> None:
    os.truncate(store.folder(1) / MANIFEST_NAME, 2**40)  # no bytes on the disk
    assert "1099511627776 bytes, expected at most" in refused(store)


def test_a_file_beyond_its_tensors_is_not_read(store: WeightStore) -> None:
    os.truncate(store.folder(1) / WEIGHTS_NAME, 2**40)
    rewrite(store, files=[{"name": WEIGHTS_NAME, "num_bytes": 2**40, "sha256": "0" * 64}])
    assert "more than its tensors can need" in refused(store)


def header(**field: Any) -> bytes:
    given = {"dtype": "F32", "shape": [SIZE], "data_offsets": [0, 4 * SIZE]} | field
    text = json.dumps({"a": given}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4 * SIZE)


@pytest.mark.parametrize(
    "data",
    [
        header(data_offsets=[0, 4 * SIZE - 4]),
        header(data_offsets=[0, 0]),
        header(data_offsets=[4, 4 * SIZE]),
        header(data_offsets=[-4, 4 * SIZE]),
        header(data_offsets=[4 * SIZE, 0]),
        header(data_offsets=[0, 2**63]),
        header(data_offsets="ab"),
        header(data_offsets=[0]),
        header(data_offsets=[0.0, 4.0 * SIZE]),
        header(shape=[SIZE - 1]),
        header(shape=[-SIZE]),
        header(shape=[2**40, 2**40]),
        header(shape="x"),
        header(dtype="F64"),
        header(dtype=None),
        header()[:-4],
        header() + b"more",
        b"",
        b"\0" * 7,
        b"\0" * 8,
        (2**63).to_bytes(8, "little") + b"{}",
        (10**6).to_bytes(8, "little") + b"[" * 10**6,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xff",
        (15).to_bytes(8, "little") + b'{"a": "no dict"}',
    ],
    ids=range(25),
)
def test_a_file_of_tensors_is_what_it_says(store: WeightStore, data: bytes) -> None:
    replace_file(store, data)
    said = refused(store)
    assert "is no file of tensors" in said, said


def update(store: WeightStore, streams: dict[str, bytes], **changes: Any) -> None:
    """Version 2 as an update of version 1, made of these streams."""
    base = store.manifest(1)
    arrays = {name: np.frombuffer(stream, np.uint8) for name, stream in streams.items()}
    VersionWriter(store).publish_update(arrays, base.tensors, VersionHeader(2, GOLDEN), base_version=1, num_changed=1)
    rewrite(store, 2, **changes)


@cache
def bomb(num_bytes: int, *, declared: bool) -> bytes:
    """So many zeros in some kilobytes."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=num_bytes if declared else -1)
    block = bytes(2**24)
    return b"".join([*(compressor.compress(block) for _ in range(num_bytes // len(block))), compressor.flush()])


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("stream", ["gaps", "ulps.0", "ulps.3"])
def test_a_stream_is_never_larger_than_its_elements(store: WeightStore, declared: bool, stream: str) -> None:
    small = {name: zstandard.compress(b"\0") for name in ("gaps", "ulps.0", "ulps.1", "ulps.2", "ulps.3")}
    update(store, small | {stream: bomb(2**29, declared=declared)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = refused(store, 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17, "more than 128 MiB were taken"
    assert f"stream {stream}" in said


@pytest.mark.parametrize("num_changed", [0, 2, SIZE, SIZE + 1, 2**40])
def test_the_number_of_changes_is_the_one_that_was_said(store: WeightStore, num_changed: int) -> None:
    small = {name: zstandard.compress(b"\0") for name in ("gaps", "ulps.0", "ulps.1", "ulps.2", "ulps.3")}
    update(store, small, num_changed=num_changed)
    assert "update of version 2" in refused(store, 2)


def test_streams_of_another_type_are_refused(store: WeightStore) -> None:
    small = {name: zstandard.compress(b"\0") for name in ("gaps", "ulps.0", "ulps.1", "ulps.2", "ulps.3")}
    update(store, small)
    fields, body = {}, b""
    for name, stream in small.items():
        padded = stream + b"\0" * (-len(stream) % 4)
        shape, ends = [len(padded) // 4], [len(body), len(body) + len(padded)]
        fields[name] = {"dtype": "F32", "shape": shape, "data_offsets": ends}
        body += padded
    text = json.dumps(fields).encode()
    replace_file(store, len(text).to_bytes(8, "little") + text + body, 2, UPDATE_NAME)
    assert "expected uint8" in refused(store, 2)


def test_requests_for_anchors_are_read_within_bounds(store: WeightStore, tmp_path: Path) -> None:
    wanted = store.root / "wanted"
    wanted.mkdir()
    os.mkfifo(wanted / "v00000001")
    (wanted / "v00000002").symlink_to("/dev/zero")
    (wanted / "v00000003").mkdir()
    (wanted / "v00000004").write_bytes(b"\x1b[2J\xff" * 10**5)
    (wanted / "v00000005").write_bytes(b"\x1b[2J\xff")
    assert store.wanted_anchors() == [4, 5]
    assert "500000 bytes, expected at most" in (store.take_wanted(4) or "")
    assert store.take_wanted(5) == "\\x1b[2J\\ufffd" or store.take_wanted(5) is None
    assert store.wanted_anchors() == []


def test_folders_and_files_are_for_their_owner_alone(store: WeightStore) -> None:
    store.want_anchor(1, "x")
    for path in [store.root, *store.root.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_an_update_loads_after_all_that(store: WeightStore) -> None:
    """The bounds leave what the publisher writes."""
    base = read_version(store, 1)["a"]
    for count in (0, 1, 300, SIZE):
        new = np.arange(SIZE, dtype=np.float32)
        new[SIZE - count :] += 1
        words = new.view("<u4")
        encoder = Encoder(4)
        encoder.add(SIZE, *changes(base.words, words))
        entries = [entry_of("a", Tensor(words, (SIZE,), "float32"))]
        manifest = VersionWriter(store).publish_update(
            encoder.finish(), entries, VersionHeader(2, GOLDEN), base_version=1, num_changed=count
        )
        (changed,) = list(read_path(store, store.path(manifest.version)))
        np.testing.assert_array_equal(changed.tensor.words, words)
        assert manifest.content_sha256 == content_sha256(entries)
        store.verify(manifest)
