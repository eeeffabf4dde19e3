"""The weight store: versions appear whole or not at all, and are never reused."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
from safetensors import safe_open

from learner_jax.contracts.weights import ContractError, GoldenPrompt, WeightFile
from serving_bridge.weights import files
from serving_bridge.weights.files import StoreError, Tensor, WeightIntegrityError, read_safetensors
from serving_bridge.weights.reader import read_path, read_version
from serving_bridge.weights.shelf import ANCHOR_NAME, MANIFEST_NAME, WEIGHTS_NAME
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.support.disk_effects import effects

__all__ = ["effects"]  # a fixture

GOLDEN = [GoldenPrompt(tokens=[1, 2, 3], logprobs=[-0.5, -1.5])]


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    wide = rng.standard_normal((6, 4)).astype(np.float32)
    return {
        "model.embed_tokens.weight": rng.standard_normal((5, 4)).astype(np.float32),
        "transposed": wide.T,  # not contiguous
        "half": rng.standard_normal((3, 3)).astype(ml_dtypes.bfloat16),
        "scalar": np.float32(rng.standard_normal()).reshape(()),
    }


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "weights", "run")


def test_what_is_published_is_what_the_safetensors_library_reads(store: WeightStore):
    want = tensors()
    manifest = VersionWriter(store).publish(want.items(), step=3, golden=GOLDEN)
    with safe_open(store.folder(manifest.version) / WEIGHTS_NAME, framework="np") as file:
        assert set(file.keys()) == set(want)
        for name in set(want) - {"half"}:
            np.testing.assert_array_equal(file.get_tensor(name), want[name], strict=True)
    with safe_open(store.folder(manifest.version) / WEIGHTS_NAME, framework="pt") as file:
        half = file.get_tensor("half")
        assert str(half.dtype) == "torch.bfloat16"
        np.testing.assert_array_equal(half.float().numpy(), want["half"].astype(np.float32))
    assert {entry.name: (tuple(entry.shape), entry.dtype) for entry in manifest.tensors} == {
        name: (array.shape, array.dtype.name) for name, array in want.items()
    }


def test_manifest_round_trips_and_chains_versions(store: WeightStore):
    first = VersionWriter(store).publish(tensors().items(), step=0, golden=GOLDEN)
    second = VersionWriter(store).publish(tensors(1).items(), step=4, golden=GOLDEN)
    assert (first.version, first.parent, second.version, second.parent) == (1, None, 2, 1)
    assert store.versions() == [1, 2]
    assert store.newest() == second == store.manifest(2)
    assert second.golden == GOLDEN
    assert (second.step, second.run, second.base_version) == (4, "run", None)
    assert first.content_sha256 != second.content_sha256
    store.verify(first)
    store.verify(second)


def test_a_version_is_on_the_disk_file_by_file_before_its_manifest_and_its_manifest_before_anyone_is_told(
    store: WeightStore, effects: list[str]
) -> None:
    VersionWriter(store).publish(tensors().items(), step=0, golden=GOLDEN)
    folder = store.folder(1)
    size = (folder / WEIGHTS_NAME).stat().st_size
    taken, written, named = (
        effects.index(effect)
        for effect in (f"sync {store.root.name}", f"sync {WEIGHTS_NAME} {size}", f"rename to {MANIFEST_NAME}")
    )
    assert taken < written < named
    assert effects[-1] == f"sync {folder.name}"


def test_the_first_number_is_as_durable_as_the_folder_that_it_is_taken_in(tmp_path: Path, effects: list[str]):
    """Also where the process before died in between: its number is there, and the folder's name may not be."""
    whole = ["sync weights", f"sync {tmp_path.name}"]
    for version in (1, 3):
        effects.clear()
        writer = VersionWriter(WeightStore(tmp_path / "weights", run="test"))
        assert writer.claim() == version
        assert effects == whole
        assert writer.claim() == version + 1
        assert effects == [*whole, "sync weights"]


def test_a_version_is_no_longer_one_before_its_files_go(store: WeightStore, effects: list[str]) -> None:
    """Else a power failure could leave a manifest whose weights are gone."""
    for step in range(3):
        VersionWriter(store).publish(tensors(step).items(), step=step, golden=[])
    names = [store.folder(version).name for version in (1, 2)]
    effects.clear()
    assert store.collect(keep=1) == [1, 2]
    assert effects == [f"sync {name}" for name in names]


def test_an_empty_store_has_no_newest_and_names_what_it_holds(store: WeightStore):
    assert store.newest() is None
    assert store.versions() == []
    VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    with pytest.raises(StoreError, match=r"holds no version 9; it holds \[1\]"):
        store.manifest(9)


def test_a_folder_without_manifest_does_not_exist_and_its_number_stays_taken(store: WeightStore):
    VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    crashed = store.folder(2)
    crashed.mkdir()
    (crashed / WEIGHTS_NAME).write_bytes(b"half a file")
    assert store.versions() == [1]
    assert VersionWriter(store).publish(tensors().items(), step=1, golden=[]).version == 3


def test_kill_9_while_publishing_leaves_nothing_visible(store: WeightStore):
    script = f"""
import numpy as np, os, signal
from serving_bridge.weights import WeightStore, folder_shelf, writer
def die(path, payload): os.kill(os.getpid(), signal.SIGKILL)
folder_shelf.write_durably = die
store = WeightStore({str(store.root)!r}, "run")
writer.VersionWriter(store).publish([("a", np.ones(3, np.float32))], step=0, golden=[])
"""
    died = subprocess.run([sys.executable, "-c", script], check=False)
    assert died.returncode == -9
    assert (store.folder(1) / WEIGHTS_NAME).is_file()
    assert store.versions() == []
    assert VersionWriter(store).publish(tensors().items(), step=0, golden=[]).version == 2


def test_publishers_in_many_processes_never_share_a_version(store: WeightStore):
    script = f"""
import numpy as np
from serving_bridge.weights import VersionWriter, WeightStore
writer = VersionWriter(WeightStore({str(store.root)!r}, "run"))
print(*[writer.publish([("a", np.ones(3, np.float32))], step=0, golden=[]).version for _ in range(10)])
"""
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(3)]
    versions = [int(word) for process in running for word in process.communicate()[0].split()]
    assert sorted(versions) == list(range(1, 31))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "has sha256 .*, expected"),
        (lambda data: data[:-4], "has .* bytes, expected"),
        (lambda data: None, "is missing"),
    ],
    ids=["flipped bit", "truncated", "missing"],
)
def test_verify_names_the_damaged_file(store: WeightStore, damage, message: str):
    manifest = VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    path = store.folder(1) / WEIGHTS_NAME
    data = damage(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(WeightIntegrityError, match=f"{WEIGHTS_NAME} {message}"):
        store.verify(manifest)


def test_verify_notices_a_manifest_whose_content_hash_is_not_of_its_tensors(store: WeightStore):
    manifest = VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    with pytest.raises(WeightIntegrityError, match="content_sha256"):
        store.verify(msgspec.structs.replace(manifest, content_sha256="0" * 64))


def test_a_damaged_manifest_is_an_error_not_a_missing_version(store: WeightStore):
    VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    path = store.folder(1) / MANIFEST_NAME
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ContractError, match="not a weight manifest"):
        store.newest()


@pytest.mark.parametrize("failing", ["weights", "manifest"])
def test_a_full_disk_says_so_and_leaves_nothing_visible(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch, failing: str
):
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if failing in path.name and path.is_file():
            calls += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"no space for version 1 .* needs \d+ bytes.*store.keep_versions"):
            VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    assert calls == 1
    assert store.versions() == []
    assert list(store.folder(1).iterdir()) == []
    assert VersionWriter(store).publish(tensors().items(), step=0, golden=[]).version == 2


@pytest.mark.parametrize("at", ["begin", "weights", "manifest"])
def test_a_version_that_was_collected_while_it_was_written_is_a_clear_error(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch, at: str
):
    """A learner that stood still is told so when it goes on; the one that took over published meanwhile."""
    late, others = VersionWriter(store), VersionWriter(store)
    version = late.claim()

    def take_over() -> None:
        for step in (1, 2):
            others.publish(tensors(step).items(), step=step, golden=[])
        store.collect(keep=2)

    if at == "begin":
        take_over()
    else:
        name = {"weights": "write_tensors", "manifest": "write_last"}[at]
        real = getattr(store.shelf, name)

        def write(*arguments: object) -> object:
            if arguments[0] == version:
                take_over()
            return real(*arguments)

        monkeypatch.setattr(store.shelf, name, write)
    with pytest.raises(StoreError, match=r"version 1 in .* was removed while it was written.*only one learner"):
        late.publish(tensors().items(), step=0, golden=[], version=version)
    assert store.versions() == [2, 3]


@pytest.mark.parametrize("also", ["removes", "writes"])
def test_a_folder_that_another_process_removes_or_writes_to_is_no_error(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch, also: str
):
    VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    folder, real, is_first = store.folder(1), os.rmdir, True

    def rmdir(*arguments: object, **options: object) -> None:
        nonlocal is_first
        if is_first and also == "removes":
            is_first = False
            store.shelf.remove(1)
        elif is_first:
            is_first = False
            (folder / "late").touch()
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rmdir", rmdir)
    store.shelf.remove(1)
    assert (store.claimed(), store.versions()) == ([1] if also == "writes" else [], [])
    store.shelf.remove(1)
    assert store.claimed() == []


def test_a_store_takes_one_run_only(store: WeightStore):
    VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    with pytest.raises(StoreError, match=r"belongs to run 'run', expected 'other'; set store.weights"):
        VersionWriter(WeightStore(store.root, "other")).publish(tensors().items(), step=0, golden=[])
    assert store.versions() == [1]


@pytest.mark.parametrize(
    ("given", "golden", "message"),
    [
        ([], [], "no tensors"),
        ([("a", np.ones(2, np.float32))] * 2, [], "a was given twice"),
        ([("a", np.ones(2, np.float64))], [], "a has dtype float64, expected one of float32, bfloat16, float16"),
        ([("a", np.array([1, np.nan], np.float32))], [], "a has 1 values that are not finite"),
        ([("a", np.array([1, -np.inf], ml_dtypes.bfloat16))], [], "a has 1 values that are not finite"),
        ([("a", np.ones(2, np.float32))], [GoldenPrompt([1, 2], [-1.0, -1.0])], "2 log-probs, expected 1"),
    ],
    ids=["none", "twice", "dtype", "nan", "infinity", "golden"],
)
def test_wrong_input_claims_no_version(store: WeightStore, given, golden, message: str):
    with pytest.raises(ValueError, match=message):
        VersionWriter(store).publish(given, step=0, golden=golden)
    assert not store.root.exists()


def test_collect_keeps_the_newest_and_those_in_use(store: WeightStore):
    for step in range(6):
        VersionWriter(store).publish([("a", np.ones(2, np.float32))], step=step, golden=[])
    assert store.collect(keep=2, in_use=[2]) == [1, 3, 4]
    assert store.versions() == [2, 5, 6]
    assert not store.folder(1).exists()
    store.verify(store.manifest(2))
    assert store.collect(keep=2, in_use=[2]) == []
    with pytest.raises(ValueError, match="keep is 0"):
        store.collect(keep=0)
    assert VersionWriter(store).publish([("a", np.ones(2, np.float32))], step=9, golden=[]).version == 7


def test_collect_clears_leftovers_of_old_crashes_but_no_publish_in_progress(store: WeightStore):
    store.folder(1).parent.mkdir()
    store.folder(1).mkdir()
    for step in range(3):
        VersionWriter(store).publish([("a", np.ones(2, np.float32))], step=step, golden=[])
    store.folder(5).mkdir()  # claimed, being written
    store.collect(keep=2)
    assert not store.folder(1).exists()
    assert store.folder(5).exists()
    assert store.versions() == [3, 4]


def test_collect_deletes_the_manifest_first(store: WeightStore, monkeypatch: pytest.MonkeyPatch):
    for step in range(2):
        VersionWriter(store).publish([("a", np.ones(2, np.float32))], step=step, golden=[])
    seen = []

    def look(folder: Path, **_: object) -> None:
        seen.append(sorted(path.name for path in folder.iterdir()))

    monkeypatch.setattr("serving_bridge.weights.folder_shelf.shutil.rmtree", look)
    store.collect(keep=1)
    assert seen == [[WEIGHTS_NAME]]


def test_a_header_longer_than_its_file_is_refused(tmp_path: Path):
    for length, rest in ((50, b"{}"), (3, b"{}"), (2**40, b"{}")):
        data = length.to_bytes(8, "little") + rest
        path = tmp_path / "file"
        path.write_bytes(data)
        file = WeightFile(name="file", num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        with pytest.raises(WeightIntegrityError, match=f"a header of {length} bytes in a file of 10"):
            read_safetensors(path, file)
    data = (2).to_bytes(8, "little") + b"{}"
    path.write_bytes(data)
    assert read_safetensors(path, WeightFile("file", len(data), hashlib.sha256(data).hexdigest())) == {}


def test_an_update_of_tensors_of_several_widths_is_refused(store: WeightStore):
    full = VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    update = msgspec.structs.replace(full, version=2, base_version=1, format="sparse", num_changed=0)
    with pytest.raises(WeightIntegrityError, match="version 2 is an update of tensors of several widths"):
        list(read_path(store, [full, update]))
    assert len(list(read_path(store, [full]))) == 4


def test_the_same_weights_have_the_same_content_in_any_version(store: WeightStore):
    first = VersionWriter(store).publish(tensors().items(), step=0, golden=[])
    second = VersionWriter(store).publish(tensors().items(), step=1, golden=[])
    assert first.content_sha256 == second.content_sha256
    changed = tensors()
    changed["half"] = changed["half"].T.copy()  # the same numbers in other places
    assert VersionWriter(store).publish(changed.items(), step=2, golden=[]).content_sha256 != first.content_sha256


def test_an_anchor_is_the_version_once_more_and_nothing_else(store: WeightStore):
    want = {name: Tensor.of(array) for name, array in tensors().items()}
    manifest = VersionWriter(store).publish(tensors().items(), step=3, golden=GOLDEN)
    (store.folder(1) / WEIGHTS_NAME).write_bytes(b"damaged")
    with pytest.raises(WeightIntegrityError, match=f"{WEIGHTS_NAME} has 7 bytes"):
        read_version(store, 1)
    other = {name: Tensor.of(array) for name, array in tensors(1).items()}
    with pytest.raises(WeightIntegrityError, match="are not its weights"):
        VersionWriter(store).add_anchor(manifest, other)
    store.want_anchor(1, "WEIGHTS damaged")
    assert store.wanted_anchors() == [1]
    assert store.take_wanted(1) == "WEIGHTS damaged"
    assert store.take_wanted(1) is None
    anchor = VersionWriter(store).add_anchor(manifest, want)
    assert (anchor.version, anchor.content_sha256, anchor.golden) == (1, manifest.content_sha256, GOLDEN)
    assert store.path(1) == [anchor]
    for name, tensor in read_version(store, 1).items():
        np.testing.assert_array_equal(tensor.words, want[name].words)
        assert (tensor.shape, tensor.dtype) == (want[name].shape, want[name].dtype)
    store.verify(anchor)
    (store.folder(1) / ANCHOR_NAME).unlink()
    VersionWriter(store).add_anchor(manifest, want)  # and once more
    store.verify(store.best_manifest(1))


@pytest.mark.parametrize(("dtype", "words"), [("float32", "<u4"), ("float16", "<u2"), ("bfloat16", "<u2")])
def test_what_is_not_finite_is_counted_in_every_block(dtype: str, words: str):
    size = 2 * files._CHECKED_BYTES // np.dtype(words).itemsize + 3
    values = np.full(size, 3.0, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert files.not_finite(values.view(words), dtype) == 0
    values[[0, size // 2, size - 1]] = np.nan, -np.inf, np.inf
    assert files.not_finite(values.view(words), dtype) == 3
    assert files.not_finite(values[:0].view(words), dtype) == 0
