"""A worker of a replica stages versions from a real S3 server: published there, fetched to its host, and proven."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts import TensorEntry
from serving_bridge.settings import StoreSettings
from serving_bridge.weights import Publisher, ShelfOptions, Tensor, WeightStore
from tests.support.s3 import S3, Fault

pytest.importorskip("torch", reason="torch is not installed")
from serving_bridge.vllm_plugin.stage import Applied, ModelTensors, Stager, StageState

#: one server for all tests on it
pytest_plugins = ["tests.support.s3_fixtures"]

URL = "s3://bucket/run"


class Model:
    """Gives back the tensors that it `held` when it was asked."""

    def __init__(self) -> None:
        self.held: dict[str, np.ndarray] = {}
        self.routed = True
        self.patched: list[str] = []

    def holds(self, name: str) -> bool:
        return name in self.held

    def read(self, entry: TensorEntry) -> Tensor:
        return Tensor.of(self.held[entry.name])

    def patches(self, changes: Any) -> Any:
        self.patched = [name for name, *_ in changes]
        return self.patched


@pytest.fixture
def publisher(s3: S3, tmp_path: Path) -> Iterator[Publisher]:
    store = WeightStore(URL, "run", ShelfOptions(cache=tmp_path / "learner", timeout_s=10.0))
    made = Publisher(store, StoreSettings(), log=lambda *_, **__: None)
    yield made
    made.close()


def staged(stager: Stager, store: WeightStore, version: int, content: str, held: Applied | None) -> StageState:
    stager.begin(store, version, content, held)
    assert stager._thread is not None
    stager._thread.join()
    return stager.status()[0]


def test_a_worker_stages_a_version_and_its_update_and_storage_that_is_away_is_no_damage(
    s3: S3, publisher: Publisher, tmp_path: Path
) -> None:
    weights = {name: np.full(4000, value, np.float32) for value, name in enumerate("ab", 1)}
    first = publisher.publish(weights.items(), step=0, golden=[])
    after = weights | {"a": weights["a"].copy()}
    after["a"][7] = 5.0
    second = publisher.publish(after.items(), step=1, golden=[])
    assert second.format == "sparse"

    told = publisher._store.variables({"AWS_ACCESS_KEY_ID": "k"}) | {"WEIR_STORE_CACHE": str(tmp_path / "replica")}
    store = WeightStore(URL, run="", options=ShelfOptions.of_environment(told | {"WEIR_STORE_TIMEOUT_S": "0.05"}))
    model = Model()
    stager = Stager(ModelTensors(dict.fromkeys("ab", (4000,)), "float32"), model)  # type: ignore[arg-type]
    assert staged(stager, store, first.version, first.content_sha256, None) == "staged"
    found = stager.get(first.version, first.content_sha256)
    assert {name: tensor.words.view(np.float32)[7] for name, tensor in found.tensors.items()} == {"a": 1.0, "b": 2.0}
    model.held = weights
    stager.finish(found)

    held = Applied(first.version, first.content_sha256)
    s3.faults.append(Fault("503", "GET"))
    assert staged(stager, store, second.version, second.content_sha256, held) == "failed"
    _, _, error, is_damaged = stager.status()
    assert "StorageError: s3://bucket/run failed at reading v00000002/anchor.json" in error
    assert not is_damaged, "the learner would store everything once more"
    s3.faults.clear()
    assert staged(stager, store, second.version, second.content_sha256, held) == "staged"
    assert model.patched == ["a"]

    fresh = WeightStore(URL, run="", options=ShelfOptions(cache=tmp_path / "other", timeout_s=0.05))
    s3.client().delete_object(Bucket="bucket", Key="run/v00000002/update.safetensors")
    assert staged(stager, fresh, second.version, second.content_sha256, held) == "failed"
    assert stager.status()[3]
    assert "v00000002/update.safetensors is missing" in stager.status()[2]
