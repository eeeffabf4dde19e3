"""Versions on their way to a worker: what is refused before a model is touched, what is held until it is applied."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts.weights import TensorEntry, WeightManifest, manifest_sha256
from serving_bridge.settings.serving import StoreSettings
from serving_bridge.weights.files import Tensor
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionWriter
from tests.support.forged_weights import forge

pytest.importorskip("torch", reason="torch is not installed")
from serving_bridge.vllm_plugin.stage import Applied, ModelTensors, StageError, Stager, check_declared, check_order

Weights = dict[str, np.ndarray]


class Model:
    """Gives back the tensors that it `held` when it was asked."""

    def __init__(self) -> None:
        self.held: Weights = {}
        self.routed = True
        self.patched: list[str] = []

    def holds(self, name: str) -> bool:
        return self.routed and name in self.held

    def read(self, entry: TensorEntry) -> Tensor:
        return Tensor.of(self.held[entry.name])

    def patches(self, changes: Any) -> Any:
        self.patched = [name for name, *_ in changes]
        return self.patched


class World:
    """A store of versions of three tensors, and a worker that stages them."""

    def __init__(self, folder: Path) -> None:
        self.store = WeightStore(folder / "weights", "run")
        self.publisher = Publisher(self.store, StoreSettings(), log=lambda *_, **__: None)
        self.weights: Weights = {name: np.full(4000, value, np.float32) for value, name in enumerate("abc", 1)}
        self.model: Any = Model()
        self.stager = Stager(ModelTensors(dict.fromkeys("abc", (4000,)), "float32"), self.model)

    def publish(self, **changed: float) -> WeightManifest:
        """The next version: with these values at the second place of these tensors."""
        for name, value in changed.items():
            self.weights = self.weights | {name: self.weights[name].copy()}
            self.weights[name][1] = value
        return self.publisher.publish(self.weights.items(), step=0, golden=[])

    def stage(
        self, manifest: WeightManifest, applied: WeightManifest | None = None, content: str = "", sealed: str = ""
    ) -> Any:
        held = None if applied is None else Applied(applied.version, applied.content_sha256)
        self.stager.begin(self.store, manifest.version, content or manifest.content_sha256, held, sealed)
        if self.stager._thread is not None:
            self.stager._thread.join()
        return self.stager.status()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.publisher.close()


def test_a_full_version_is_held_until_it_is_applied(world: World) -> None:
    manifest = world.publish()
    assert world.stager.status() == ("idle", None, "", False)
    assert world.stage(manifest) == ("staged", manifest.version, "", False)
    staged = world.stager.get(manifest.version, manifest.content_sha256)
    assert (staged.is_update, set(staged.tensors), staged.patches) == (False, set("abc"), None)
    for asked in ((manifest.version, "f" * 64), (manifest.version + 1, manifest.content_sha256)):
        with pytest.raises(StageError, match=rf"is not staged, got version {manifest.version} "):
            world.stager.get(*asked)
    world.stager.finish(staged)
    assert world.stager.status() == ("idle", None, "", False)
    with pytest.raises(StageError, match="is not staged, got nothing"):
        world.stager.get(manifest.version, manifest.content_sha256)


def test_an_update_is_made_of_what_the_model_gives_back_and_of_what_was_kept(world: World) -> None:
    first = world.publish()
    world.stage(first)
    world.model.held = {"a": world.weights["a"]}
    world.stager.finish(world.stager.get(first.version, first.content_sha256))
    assert set(world.stager._kept) == {"b", "c"}
    second = world.publish(a=7.0, b=8.0)
    assert second.format == "sparse"
    assert world.stage(second, first) == ("staged", second.version, "", False)
    staged = world.stager.get(second.version, second.content_sha256)
    assert (staged.is_update, world.model.patched, staged.patches) == (True, ["a", "b"], ["a", "b"])
    assert set(staged.tensors) == {"b"}, "a is changed where it lies"
    world.stager.finish(staged)
    assert {name: tensor.words.view(np.float32)[1] for name, tensor in world.stager._kept.items()} == {"b": 8, "c": 3}
    world.model.held = {}
    third = world.publish(c=9.0)
    assert world.stage(third, second)[:2] == ("failed", None), "nobody can give a back"


def test_where_elements_can_not_be_written_singly_whole_tensors_are(world: World) -> None:
    first = world.publish()
    world.model.routed = False
    world.stage(first)
    world.stager.finish(world.stager.get(first.version, first.content_sha256))
    second = world.publish(b=8.0)
    world.stage(second, first)
    staged = world.stager.get(second.version, second.content_sha256)
    assert (staged.is_update, set(staged.tensors), staged.patches) == (True, {"b"}, None)


def test_a_full_version_leaves_nothing_of_those_before_it(world: World) -> None:
    world.stager._kept = {"old": Tensor.of(np.zeros(1, np.float32))}
    manifest = world.publish()
    world.stage(manifest)
    world.model.held = world.weights
    world.stager.finish(world.stager.get(manifest.version, manifest.content_sha256))
    assert world.stager._kept == {}


def test_the_version_that_is_applied_is_not_read_again(world: World) -> None:
    manifest = world.publish()
    assert world.stage(manifest, manifest) == ("applied", None, "", False)
    assert world.stager._thread is None


def test_what_can_not_be_staged_says_why_and_whether_the_store_is_at_fault(world: World) -> None:
    first, second = world.publish(), world.publish(a=7.0)
    state, version, error, damaged = world.stage(second, content="f" * 64)
    assert (state, version, damaged) == ("failed", None, False)
    assert error.startswith(f"StageError: version {second.version} of {world.store.root} is {second.content_sha256}")
    assert "is not newer than version" in world.stage(first, second)[2]
    assert world.stage(second) == ("staged", second.version, "", False), "the next one may be"
    for path in world.store.root.rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    state, version, _, damaged = world.stage(first)
    assert (state, version, damaged) == ("failed", None, True)
    world.stager.clear()
    assert world.stager.status() == ("idle", None, "", False)


def test_weights_with_forged_hashes_are_refused_where_a_manifest_is_demanded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = world.publish()
    sealed = manifest_sha256(manifest)
    assert world.stage(manifest, sealed=sealed)[0] == "staged"
    forge(world.store, manifest, monkeypatch)
    assert world.stage(manifest)[0] == "staged", "the forgery is good"
    state, version, error, damaged = world.stage(manifest, sealed=sealed)
    assert (state, version, damaged) == ("failed", None, True)
    assert f"manifest of version {manifest.version} in {world.store.address} has sha256" in error
    assert f"expected {sealed}: it was changed after it was checked" in error


def test_a_file_that_changes_after_the_manifest_was_checked_is_refused(world: World) -> None:
    manifest = world.publish()
    (file,) = manifest.files
    path = world.store.folder(manifest.version) / file.name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    state, _, error, damaged = world.stage(manifest, sealed=manifest_sha256(manifest))
    assert (state, damaged) == ("failed", True)
    assert f"{file.name} has sha256" in error


def test_the_way_a_manifest_is_spaced_is_no_part_of_its_name(world: World) -> None:
    manifest = world.publish()
    path = world.store.folder(manifest.version) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert world.stage(manifest, sealed=manifest_sha256(manifest))[0] == "staged"


def test_one_version_is_read_at_a_time_and_what_is_read_is_not_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, reading, go_on = world.publish(), threading.Event(), threading.Event()
    best = WeightStore.best_manifest

    def slow(self: WeightStore, version: int) -> WeightManifest:
        reading.set()
        assert go_on.wait(30)
        return best(self, version)

    monkeypatch.setattr(WeightStore, "best_manifest", slow)
    world.stager.begin(world.store, manifest.version, manifest.content_sha256, None)
    assert reading.wait(30)
    assert world.stager.status() == ("reading", None, "", False)
    world.stager.clear()
    with pytest.raises(StageError, match=f"staging of version {manifest.version} has not ended"):
        world.stager.begin(world.store, manifest.version, manifest.content_sha256, None)
    go_on.set()
    assert world.stager._thread is not None
    world.stager._thread.join()
    assert world.stager.status()[:2] == ("staged", manifest.version)


def test_versions_only_go_up(world: World) -> None:
    first, second = world.publish(), world.publish(a=7.0)
    check_order(first, None)
    check_order(second, Applied(first.version, first.content_sha256))
    for applied in (first, second):
        with pytest.raises(StageError, match=f"version {first.version} .* is not newer than version {applied.version}"):
            check_order(first, Applied(applied.version, applied.content_sha256))


def test_where_aliases_are_followed_versions_go_back_and_those_kept_are_not_read_again(world: World) -> None:
    def published(value: float) -> WeightManifest:
        tensors = world.weights | {"a": np.full(4000, value, np.float32)}
        return VersionWriter(world.store).publish(tensors.items(), step=0, golden=[])

    first, second, third = published(1), published(7), published(8)
    expected = ModelTensors(dict.fromkeys("abc", (4000,)), "float32")
    world.stager = Stager(expected, world.model, any_order=True, kept_versions=1)

    def swap(to: WeightManifest, before: WeightManifest | None) -> bool:
        """Whether it was read from the store."""
        world.stager._thread = None
        assert world.stage(to, before)[:2] == ("staged", to.version)
        staged = world.stager.get(to.version, to.content_sha256)
        assert staged.tensors["a"].words.view(np.float32)[1] == {1: 1, 2: 7, 3: 8}[to.version]
        world.stager.finish(staged)
        return world.stager._thread is not None

    assert [swap(first, None), swap(second, first)] == [True, True]
    assert [swap(first, second), swap(second, first)] == [False, False]
    assert [swap(third, second), swap(second, third), swap(first, second)] == [True, False, True], "one beside the last"


@pytest.mark.parametrize(
    ("shapes", "dtype", "said"),
    [
        ({"a": (4000,), "b": (4000,), "c": (4000,), "d": (1,)}, "float32", r"1 missing \['d'\], 0 unknown \[\]"),
        ({"a": (4000,), "b": (4000,)}, "float32", r"0 missing \[\], 1 unknown \['c'\]"),
        ({"a": (4000,), "b": (40, 100), "c": (4000,)}, "float32", r"b has shape \(4000,\), expected \(40, 100\)"),
        ({"a": (4000,), "b": (4000,), "c": (4000,)}, "bfloat16", "a has dtype float32, but the server computes in b"),
    ],
)
def test_tensors_are_exactly_the_models(
    world: World, shapes: dict[str, tuple[int, ...]], dtype: str, said: str
) -> None:
    with pytest.raises(StageError, match=said):
        check_declared(world.publish(), ModelTensors(shapes, dtype))
