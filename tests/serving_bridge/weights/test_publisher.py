"""Publishing in the smaller form: chains of updates that give back exactly what was published."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest

from learner_jax.contracts.weights import GoldenPrompt, TensorChange, WeightManifest, encode_manifest
from serving_bridge.settings.serving import StoreSettings
from serving_bridge.weights import delta as weight_delta
from serving_bridge.weights.files import StoreError, WeightIntegrityError
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.reader import read_path, read_version
from serving_bridge.weights.shelf import ANCHOR_NAME, MANIFEST_NAME, UPDATE_NAME
from serving_bridge.weights.store import WeightStore

GOLDEN = [GoldenPrompt(tokens=[1, 2], logprobs=[-0.5])]
Weights = dict[str, np.ndarray]


def weights(seed: int = 0, dtype: Any = ml_dtypes.bfloat16) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = {"embed": (40, 64), "norm": (64,), "q": (64, 64), "down": (64, 192)}
    return {name: (0.02 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def stepped(old: Weights, share: float, seed: int) -> Weights:
    """Weights after a step that moves a share of the elements, of all tensors but the norm."""
    rng = np.random.default_rng(seed)
    new = {}
    for name, array in old.items():
        moves = (rng.random(array.shape) < share) & (name != "norm")
        new[name] = np.where(moves, array.astype(np.float32) * 1.01 + 1e-6, array.astype(np.float32)).astype(
            array.dtype
        )
    return new


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "weights", "run")


@pytest.fixture
def publisher(store: WeightStore) -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(**settings: Any) -> Publisher:
        made.append(Publisher(store, StoreSettings(**settings), log=lambda *_, **__: None))
        return made[-1]

    yield make
    for one in made:
        one.close()


def publish(to: Publisher, tensors: Weights, step: int = 0) -> WeightManifest:
    return to.publish(tensors.items(), step=step, golden=GOLDEN)


def held(store: WeightStore, version: int) -> dict[str, bytes]:
    return {name: tensor.words.tobytes() for name, tensor in read_version(store, version).items()}


def raw(tensors: Weights) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in tensors.items()}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
def test_every_version_of_a_chain_reads_back_exactly(store: WeightStore, publisher, dtype: Any):
    to, now = publisher(anchor_every=4), weights(dtype=dtype)
    published = []
    for step in range(9):
        published.append(now)
        manifest = publish(to, now, step)
        assert manifest.format == ("full" if step % 4 == 0 else "sparse"), step
        assert manifest.base_version == (None if step % 4 == 0 else step)
        assert manifest.golden == GOLDEN
        now = stepped(now, 0.02, step)
    for version, want in enumerate(published, start=1):
        assert held(store, version) == raw(want)
        store.verify(store.manifest(version))
    full, sparse = store.manifest(1).num_bytes, store.manifest(2).num_bytes
    assert sparse < full / 8
    changed = sum(int((published[0][name] != published[1][name]).sum()) for name in published[0])
    assert store.manifest(2).num_changed == changed


def test_the_path_to_a_version_starts_at_what_is_applied_or_at_an_anchor(store: WeightStore, publisher):
    to, now = publisher(anchor_every=4), weights()
    for step in range(7):
        publish(to, now, step)
        now = stepped(now, 0.02, step)
    numbers = lambda path: [manifest.version for manifest in path]  # noqa: E731
    assert numbers(store.path(4)) == [1, 2, 3, 4]
    assert numbers(store.path(4, applied=2)) == [3, 4]
    assert numbers(store.path(7, applied=2)) == [5, 6, 7]  # the anchor is newer than what is applied
    assert numbers(store.path(7, applied=6)) == [7]
    store.collect(keep=1)
    assert store.versions() == [5, 6, 7]  # those that the newest builds on stay
    (store.folder(6) / MANIFEST_NAME).unlink()
    with pytest.raises(StoreError, match="version 7 builds on version 6, which is gone"):
        store.path(7)
    assert numbers(store.path(7, applied=6)) == [7]


def test_dense_changes_are_published_whole(store: WeightStore, publisher):
    to, now = publisher(max_changed=0.1), weights()
    publish(to, now)
    manifest = publish(to, stepped(now, 0.5, 0))
    assert (manifest.format, manifest.num_changed) == ("full", None)
    assert held(store, 2) == raw(stepped(now, 0.5, 0))


def test_steps_that_change_much_are_not_encoded_again_and_again(
    store: WeightStore, publisher, monkeypatch: pytest.MonkeyPatch
):
    to, now = publisher(max_changed=0.3), weights()
    publish(to, now)
    encoded = 0
    real = weight_delta.Encoder.add

    def counted(*arguments: Any) -> None:
        nonlocal encoded
        encoded += 1
        real(*arguments)

    monkeypatch.setattr(weight_delta.Encoder, "add", counted)
    counts, forms = [], []
    for step, share in enumerate((0.9, 0.9, 0.9, 0.01, 0.01)):
        encoded, now = 0, stepped(now, share, step)
        forms.append(publish(to, now).format)
        counts.append(encoded)
    assert forms == ["full", "full", "full", "sparse", "sparse"]
    assert counts[1:3] == [0, 0]
    assert counts[3:] == [4, 4]
    assert held(store, 6) == raw(now)


def test_noise_is_published_whole_even_if_density_would_allow_an_update(store: WeightStore, publisher):
    to, now = publisher(max_changed=1.0), weights(0)
    publish(to, now)
    rng = np.random.default_rng(5)
    noise = {
        name: rng.integers(0, 0x7F80, array.shape, dtype=np.uint16).view(ml_dtypes.bfloat16)
        for name, array in now.items()
    }
    assert publish(to, noise).format == "full"
    assert held(store, 2) == raw(noise)


@pytest.mark.parametrize(
    "other",
    [
        lambda w: {**w, "more": np.ones(3, ml_dtypes.bfloat16)},
        lambda w: {name: array for name, array in w.items() if name != "q"},
        lambda w: {**w, "q": w["q"].reshape(32, 128)},
        lambda w: {**w, "q": w["q"].astype(np.float32)},
        lambda w: dict(reversed(w.items())),
    ],
    ids=["added", "removed", "reshaped", "widened", "reordered"],
)
def test_another_model_is_published_whole(store: WeightStore, publisher, other):
    to = publisher()
    publish(to, weights())
    assert publish(to, other(weights())).format == "full"
    assert held(store, 2) == raw(other(weights()))


def test_an_unchanged_version_is_an_empty_update(store: WeightStore, publisher):
    to = publisher()
    publish(to, weights())
    manifest = publish(to, weights())
    assert (manifest.format, manifest.num_changed) == ("sparse", 0)
    assert manifest.content_sha256 == store.manifest(1).content_sha256
    assert held(store, 2) == raw(weights())


def test_a_restarted_publisher_begins_with_an_anchor(store: WeightStore, publisher):
    publish(publisher(), weights())
    again = publisher()
    assert again.base() is None
    assert publish(again, weights()).format == "full"
    assert again.base() == 2


def test_a_failed_publish_leaves_the_chain_as_it_was(store: WeightStore, publisher, monkeypatch: pytest.MonkeyPatch):
    to, now = publisher(), weights()
    publish(to, now)
    with monkeypatch.context() as patch:
        patch.setattr(
            "serving_bridge.weights.folder_shelf.write_durably", lambda *_: (_ for _ in ()).throw(OSError(5, "EIO"))
        )
        with pytest.raises(OSError, match="EIO"):
            publish(to, stepped(now, 0.02, 0))
    assert store.versions() == [1]
    manifest = publish(to, stepped(now, 0.02, 1))
    assert (manifest.version, manifest.base_version) == (3, 1)
    assert held(store, 3) == raw(stepped(now, 0.02, 1))


def test_changes_found_elsewhere_give_the_same_version(store: WeightStore, publisher, tmp_path: Path):
    first, second = weights(), stepped(weights(), 0.02, 0)
    to = publisher()
    publish(to, first)
    changes = []
    for name in first:
        (where,) = np.nonzero((first[name] != second[name]).reshape(-1))
        if where.size:
            changes.append(TensorChange(name, where, second[name].reshape(-1)[where]))
    manifest = to.publish_changes(changes, base=1, step=1, golden=GOLDEN)
    other = Publisher(WeightStore(tmp_path / "other", "run"), StoreSettings(), log=lambda *_, **__: None)
    publish(other, first)
    assert publish(other, second, step=1) == manifest
    other.close()
    assert held(store, 2) == raw(second)
    assert publish(to, first).base_version == 2  # and the chain goes on from there
    assert held(store, 3) == raw(first)


def test_wrong_changes_are_refused(store: WeightStore, publisher):
    to = publisher()
    publish(to, weights())
    one = np.array([1.0], ml_dtypes.bfloat16)
    infinity = np.array([np.inf], ml_dtypes.bfloat16)
    for change, message in (
        (TensorChange("nope", np.array([0]), one), "does not have: .'nope'"),
        (TensorChange("norm", np.array([64]), one), "norm: 1 values for 1 positions up to 64"),
        (TensorChange("norm", np.array([0]), infinity), "norm has 1 values that are not finite"),
        (TensorChange("norm", np.array([0]), np.ones(1, np.float32)), "changes of dtype float32, expected bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            to.publish_changes([change], base=1, step=0, golden=[])
    with pytest.raises(ValueError, match="against version 7, but version 1 is the newest"):
        to.publish_changes([], base=7, step=0, golden=[])
    assert store.versions() == [1]


def test_a_publisher_that_closes_tells_its_thread_before_it_waits_for_it(publisher, monkeypatch: pytest.MonkeyPatch):
    to, told = publisher(), []
    join = to._mender.join
    monkeypatch.setattr(to._mender, "join", lambda timeout: told.append(to._closed.is_set()) or join(timeout))
    to.close()
    assert told == [True]


def two_versions(store: WeightStore, publisher) -> tuple[Weights, WeightManifest]:
    to = publisher()
    publish(to, weights())
    publish(to, stepped(weights(), 0.02, 0))
    return stepped(weights(), 0.02, 0), store.manifest(2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], f"{UPDATE_NAME} has sha256 .*, expected"),
        (lambda data: data[:-4], f"{UPDATE_NAME} has .* bytes, expected"),
        (lambda data: None, f"{UPDATE_NAME} is missing"),
    ],
    ids=["flipped bit", "truncated", "missing"],
)
def test_a_damaged_update_is_named_and_an_anchor_on_request_heals_it(store: WeightStore, publisher, damage, message):
    want, _ = two_versions(store, publisher)
    path = store.folder(2) / UPDATE_NAME
    data = damage(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(WeightIntegrityError, match=message):
        read_version(store, 2)
    store.want_anchor(2, message)
    deadline = time.monotonic() + 60
    while not (store.folder(2) / "anchor.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert store.wanted_anchors() == []
    assert [manifest.files[0].name for manifest in store.path(2, applied=1)] == [ANCHOR_NAME]
    assert held(store, 2) == raw(want)


def test_an_update_on_another_base_is_named_by_tensor(store: WeightStore, publisher):
    _, manifest = two_versions(store, publisher)
    base = read_version(store, 1)
    list(read_path(store, [manifest], lambda entry: base[entry.name]))  # on its own base it is fine
    base["down"].words[7] ^= 1
    with pytest.raises(WeightIntegrityError, match="down has xxh3_128 .* after the update, expected"):
        list(read_path(store, [manifest], lambda entry: base[entry.name]))
    base = read_version(store, 1)
    base["q"] = dataclasses.replace(base["q"], shape=(32, 128))
    with pytest.raises(
        WeightIntegrityError, match=r"q is bfloat16\[32, 128\] before the update, expected bfloat16\[64, 64\]"
    ):
        list(read_path(store, [manifest], lambda entry: base[entry.name]))
    with pytest.raises(WeightIntegrityError, match="applies to version 1, whose tensors are not at hand"):
        list(read_path(store, [manifest]))


def test_a_manifest_that_lies_is_caught(store: WeightStore, publisher):
    _, manifest = two_versions(store, publisher)

    def rewritten(**fields: Any) -> None:
        changed = msgspec.structs.replace(manifest, **fields)
        (store.folder(2) / MANIFEST_NAME).write_bytes(encode_manifest(changed))

    rewritten(num_changed=3)
    with pytest.raises(WeightIntegrityError, match="update of version 2: stream gaps .* is not one whole zstd frame"):
        read_version(store, 2)
    rewritten(base_version=2)
    with pytest.raises(WeightIntegrityError, match="builds on version 2, expected an older one"):
        store.path(2)
    rewritten(tensors=manifest.tensors[1:])
    with pytest.raises(WeightIntegrityError, match="its tensors give content_sha256"):
        read_version(store, 2)


@pytest.mark.parametrize("whole", [True, False], ids=["anchor", "update"])
def test_values_that_are_not_finite_are_refused_by_readers_too(
    store: WeightStore, publisher, monkeypatch: pytest.MonkeyPatch, whole: bool
):
    bad = weights()
    bad["q"][3, 4] = np.nan
    to = publisher()
    if not whole:
        publish(to, weights())
    with monkeypatch.context() as careless:
        for module in ("checks", "publisher"):
            careless.setattr(f"serving_bridge.weights.{module}.check_finite", lambda *_: None)
        version = publish(to, bad).version
    with pytest.raises(WeightIntegrityError, match="q holds 1 values that are not finite"):
        read_version(store, version)
