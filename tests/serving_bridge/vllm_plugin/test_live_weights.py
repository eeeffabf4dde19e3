"""Single elements of vLLM's own models, fused and cut as they are: what is written is what a fresh load would hold.

The models are built by vLLM in this process, without a server around them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from learner_jax.contracts.weights import WeightManifest
from serving_bridge.access.lease import LeaseError
from serving_bridge.settings.serving import StoreSettings
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.shelf import UPDATE_NAME
from serving_bridge.weights.store import WeightStore
from tests.support.live_models import (
    Weights,
    apply,
    assert_same,
    bits_of,
    engine_of,
    fresh,
    model_folder,
    random_weights,
    stage,
    stepped,
    tensor_parallel,
)
from tests.support.live_models import distributed as distributed

pytest.importorskip("vllm", reason="vLLM is not installed")

FAMILIES = ("Llama", "Qwen2", "Qwen3")
NUM_UPDATES = 50


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[WeightStore, Publisher]]:
    store = WeightStore(tmp_path / "weights", "run")
    publisher = Publisher(store, StoreSettings(anchor_every=NUM_UPDATES + 10), log=lambda *_, **__: None)
    yield store, publisher
    publisher.close()


def publish(publisher: Publisher, weights: Weights) -> WeightManifest:
    return publisher.publish(weights.items(), step=0, golden=[])


#: tables of both kinds on every family; the suite takes one kind each
KINDS = [
    pytest.param(
        family,
        tied,
        id=f"{family}-{'tied' if tied else 'untied'}",
        marks=() if tied == (number % 2 == 0) else pytest.mark.soak,
    )
    for number, family in enumerate(FAMILIES)
    for tied in (True, False)
]


@pytest.mark.parametrize(("family", "tied"), KINDS)
def test_fifty_updates_leave_what_a_fresh_load_holds(tmp_path: Path, published, family: str, tied: bool):
    store, publisher = published
    folder = model_folder(tmp_path / "model", family, tied=tied)
    engine = engine_of(folder, "bfloat16")
    weights = random_weights(folder, ml_dtypes.bfloat16)
    apply(engine, store, publish(publisher, weights))
    assert engine.live.routed
    assert all(engine.live.holds(name) for name in weights)
    for step in range(NUM_UPDATES):
        weights = stepped(weights, step)
        manifest = publish(publisher, weights)
        assert manifest.format == "sparse"
        apply(engine, store, manifest)
        assert engine.applied.version == manifest.version
    assert_same(bits_of(engine.model), fresh(folder, "bfloat16", weights))
    weights = random_weights(folder, ml_dtypes.bfloat16, seed=9)  # everything differs: published whole
    manifest = publish(publisher, weights)
    assert manifest.format == "full"
    apply(engine, store, manifest)
    assert_same(bits_of(engine.model), fresh(folder, "bfloat16", weights))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Qwen2", True), ("Qwen3", False)])
def test_workers_of_a_tensor_parallel_replica_write_their_own_part(
    tmp_path: Path, published, family: str, tied: bool, rank: int
):
    store, publisher = published
    folder = model_folder(tmp_path / "model", family, tied=tied)
    with tensor_parallel(rank, 2):
        engine = engine_of(folder, "float32")
        weights = random_weights(folder, np.float32)
        apply(engine, store, publish(publisher, weights))
        assert engine.live.routed
        assert not engine.live.holds("model.layers.0.self_attn.q_proj.weight")  # half of it
        assert engine.live.holds("model.norm.weight")
        for step in range(5):
            weights = stepped(weights, step)
            apply(engine, store, publish(publisher, weights))
        assert_same(bits_of(engine.model), fresh(folder, "float32", weights))


def test_a_late_worker_takes_the_anchor_and_the_updates_after_it(tmp_path: Path, published):
    store, publisher = published
    folder = model_folder(tmp_path / "model", "Qwen3", tied=True)
    weights = random_weights(folder, ml_dtypes.bfloat16)
    manifests = [publish(publisher, weights)]
    for step in range(6):
        weights = stepped(weights, step)
        manifests.append(publish(publisher, weights))
    late = engine_of(folder, "bfloat16")
    apply(late, store, manifests[-1])
    assert_same(bits_of(late.model), fresh(folder, "bfloat16", weights))
    behind = engine_of(folder, "bfloat16")
    apply(behind, store, manifests[2])
    apply(behind, store, manifests[-1])  # four updates at once
    assert_same(bits_of(behind.model), bits_of(late.model))


def world(tmp_path: Path, published) -> tuple[Any, WeightStore, Publisher, Weights]:
    """An engine on version 1."""
    store, publisher = published
    folder = model_folder(tmp_path / "model", "Qwen2", tied=True)
    engine = engine_of(folder, "bfloat16")
    weights = random_weights(folder, ml_dtypes.bfloat16)
    apply(engine, store, publish(publisher, weights))
    return engine, store, publisher, weights


def test_applying_twice_or_out_of_order_changes_nothing(tmp_path: Path, published):
    engine, store, publisher, weights = world(tmp_path, published)
    second, third = (publish(publisher, stepped(weights, seed)) for seed in (1, 2))
    apply(engine, store, third)
    before = bits_of(engine.model)
    assert stage(engine, store, third) == ""
    assert engine.stager.status()[0] == "applied"
    engine.update_weights({"version": 3, "content_sha256": third.content_sha256, "round_id": "r"})
    with pytest.raises(ValueError, match="is not staged, got nothing"):
        engine.update_weights({"version": 3, "content_sha256": second.content_sha256, "round_id": "r"})
    assert "is not newer than version 3" in stage(engine, store, second)
    assert_same(bits_of(engine.model), before)
    assert (engine.applied.version, engine.intact) == (3, True)


def test_only_the_round_that_holds_the_lease_may_write(tmp_path: Path, published):
    engine, store, publisher, weights = world(tmp_path, published)
    before = bits_of(engine.model)
    manifest = publish(publisher, stepped(weights, 1))
    assert stage(engine, store, manifest) == ""
    update = {"version": manifest.version, "content_sha256": manifest.content_sha256}
    with pytest.raises(LeaseError, match="round other does not hold this replica, round r does"):
        engine.update_weights(update | {"round_id": "other"})
    engine.lease.release("r")
    with pytest.raises(LeaseError, match="round r does not hold this replica"):
        engine.update_weights(update | {"round_id": "r"})
    assert_same(bits_of(engine.model), before)
    assert (engine.applied.version, engine.intact) == (1, True)


def test_another_content_under_the_version_that_is_applied_is_not_taken_for_it(tmp_path: Path, published):
    engine, store, _, _ = world(tmp_path, published)
    engine.lease.take("r", 60)
    engine.stager.begin(store, engine.applied.version, "0" * 64, engine.applied)
    engine.stager._thread.join()
    state, staged, error, _ = engine.stager.status()
    assert (state, staged) == ("failed", None)
    assert "expected " + "0" * 64 in error


def test_weights_that_changed_in_memory_are_noticed_before_an_update_builds_on_them(tmp_path: Path, published):
    import torch

    engine, store, publisher, weights = world(tmp_path, published)
    with torch.no_grad():
        dict(engine.model.named_parameters())["model.layers.1.mlp.gate_up_proj.weight"][3, 4] += 1
    error = stage(engine, store, publish(publisher, stepped(weights, 1)))
    assert "model.layers.1.mlp.gate_proj.weight has xxh3_128" in error
    assert engine.stager.status()[3]  # a full version heals it
    store.want_anchor(2, error)
    publisher._mend_once()
    apply(engine, store, store.manifest(2))
    assert_same(bits_of(engine.model), fresh(tmp_path / "model", "bfloat16", stepped(weights, 1)))


def test_a_damaged_update_touches_nothing(tmp_path: Path, published):
    engine, store, publisher, weights = world(tmp_path, published)
    before = bits_of(engine.model)
    manifest = publish(publisher, stepped(weights, 1))
    path = store.folder(2) / UPDATE_NAME
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{UPDATE_NAME} has" in stage(engine, store, manifest)
    with pytest.raises(ValueError, match="version 2 .* is not staged"):
        engine.update_weights({"version": 2, "content_sha256": manifest.content_sha256, "round_id": "r"})
    assert_same(bits_of(engine.model), before)
    assert (engine.applied.version, engine.intact) == (1, True)


@pytest.mark.parametrize("undo_fails", [False, True])
def test_an_update_that_breaks_off_is_undone_or_the_worker_is_of_no_version(
    tmp_path: Path, published, monkeypatch: pytest.MonkeyPatch, undo_fails: bool
):
    import torch

    engine, store, publisher, weights = world(tmp_path, published)
    before = bits_of(engine.model)
    manifest = publish(publisher, stepped(weights, 1))
    assert stage(engine, store, manifest) == ""
    real, calls = torch.Tensor.index_copy_, 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4 or (undo_fails and calls == 6):
            raise MemoryError(f"call {calls}")
        return real(*arguments)

    update = {"version": 2, "content_sha256": manifest.content_sha256, "round_id": "r"}
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "index_copy_", failing)
        with pytest.raises(RuntimeError, match="could not be undone" if undo_fails else "was undone: call 4"):
            engine.update_weights(update)
    if undo_fails:
        assert (engine.applied, engine.intact) == (None, False)
        assert stage(engine, store, manifest) == ""  # by the anchor and the update after it
        engine.update_weights(update)
    else:
        assert_same(bits_of(engine.model), before)
        assert (engine.applied.version, engine.intact) == (1, True)
        engine.update_weights(update)  # it is still staged
    assert_same(bits_of(engine.model), fresh(tmp_path / "model", "bfloat16", stepped(weights, 1)))
    assert (engine.applied.version, engine.intact) == (2, True)


def test_a_model_whose_loaders_do_more_than_copy_is_updated_by_whole_tensors(tmp_path: Path, published):
    import torch

    store, publisher = published

    class Doubling(torch.nn.Module):
        """Keeps twice a tensor, as a loader that rescales would."""

        def __init__(self) -> None:
            super().__init__()
            self.kept = torch.nn.Parameter(torch.zeros(128))

        def load_weights(self, weights: Any) -> set[str]:
            for name, tensor in weights:
                if name == "model.norm.weight":
                    self.kept.data.copy_(2 * tensor)
            return {"kept"}

    folder = model_folder(tmp_path / "model", "Qwen3", tied=True)
    engine = engine_of(folder, "float32")
    from serving_bridge.vllm_plugin.live import LiveWeights

    model = Doubling()
    engine.model = model
    engine.live = LiveWeights(model)
    engine.stager._live = engine.live
    weights = random_weights(folder, np.float32)
    apply(engine, store, publish(publisher, weights))
    assert not engine.live.routed
    for step in range(3):
        weights = stepped(weights, step)
        apply(engine, store, publish(publisher, weights))
        np.testing.assert_array_equal(model.kept.detach().numpy(), 2 * weights["model.norm.weight"])
