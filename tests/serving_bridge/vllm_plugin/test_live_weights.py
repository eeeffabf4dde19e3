"""Single elements of vLLM's own models, fused and cut as they are: what is written is what a fresh load would hold.

The models are built by vLLM in this process, without an engine around them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from learner_jax.contracts.model import hf_shapes, read_model_config
from learner_jax.contracts.weights import WeightManifest
from serving_bridge.settings.serving import StoreSettings
from serving_bridge.weights.files import Tensor
from serving_bridge.weights.publisher import Publisher
from serving_bridge.weights.store import UPDATE_NAME, WeightStore

pytest.importorskip("vllm", reason="vLLM is not installed")


FAMILIES = ("Llama", "Qwen2", "Qwen3")


NUM_UPDATES = 50


Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def distributed() -> Iterator[None]:
    """One process as vLLM's whole world."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own
        from vllm.distributed import cleanup_dist_env_and_memory, ensure_model_parallel_initialized
        from vllm.distributed import init_distributed_environment as init

        import serving_bridge.vllm_plugin as plugin

        plugin.register()
    patch = pytest.MonkeyPatch()
    patch.setattr(torch.accelerator, "empty_cache", lambda: None)  # raises where there is no accelerator
    with patch.context() as environment:
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        environment.setenv("TORCH_COMPILE_DISABLE", "1")
        from vllm.config import VllmConfig, set_current_vllm_config

        with set_current_vllm_config(VllmConfig()):
            store = Path(os.environ.get("TMPDIR", "/tmp")) / f"weir-gloo-{os.getpid()}"
            init(1, 0, f"file://{store}", 0, "gloo")
            ensure_model_parallel_initialized(1, 1)
        yield
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cleanup_dist_env_and_memory()
        store.unlink(missing_ok=True)
    patch.undo()


@contextmanager
def tensor_parallel(rank: int, size: int) -> Iterator[None]:
    """vLLM builds and loads models as one worker of several; nothing is computed, so nobody else is needed."""
    from vllm.distributed import parallel_state

    patch = pytest.MonkeyPatch()
    patch.setattr(parallel_state, "_TP", SimpleNamespace(rank_in_group=rank, world_size=size))
    try:
        yield
    finally:
        patch.undo()


def model_folder(folder: Path, family: str, *, tied: bool) -> Path:
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=130,  # vLLM pads it
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=tied,
        max_position_embeddings=64,
        architectures=[f"{family}ForCausalLM"],
    )
    config.save_pretrained(folder)
    return folder


def build(folder: Path, dtype: str) -> tuple[Any, Any]:
    """(vLLM's config, vLLM's model with random weights)."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    arguments = EngineArgs(
        model=str(folder),
        dtype=dtype,
        max_model_len=64,
        enforce_eager=True,
        load_format="dummy",
        skip_tokenizer_init=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = arguments.create_engine_config()
        with set_current_vllm_config(config):
            return config, get_model(vllm_config=config)


def engine_of(folder: Path, dtype: str) -> Any:
    import torch
    from vllm.config.weight_transfer import WeightTransferConfig

    from serving_bridge.vllm_plugin.engine import WeirEngine

    config, model = build(folder, dtype)
    return WeirEngine(WeightTransferConfig(backend="weir"), config, torch.device("cpu"), model)


def bits_of(model: Any) -> dict[str, np.ndarray]:
    import torch

    words = {2: torch.int16, 4: torch.int32}
    return {name: p.detach().view(words[p.element_size()]).numpy().copy() for name, p in model.named_parameters()}


def fresh(folder: Path, dtype: str, weights: Weights) -> dict[str, np.ndarray]:
    """Parameters of a new model that loaded these weights by vLLM's own loaders."""
    import torch

    from serving_bridge.vllm_plugin.live import tensor_of

    _, model = build(folder, dtype)
    with torch.no_grad():
        model.load_weights((name, tensor_of(Tensor.of(array))) for name, array in weights.items())
    return bits_of(model)


def random_weights(folder: Path, dtype: Any, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = hf_shapes(read_model_config(folder))
    return {name: (0.1 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def stepped(weights: Weights, seed: int, share: float = 0.03) -> Weights:
    rng = np.random.default_rng(seed)
    moved = {}
    for name, array in weights.items():
        where = rng.random(array.shape) < share
        moved[name] = np.where(where, array.astype(np.float32) * 1.02, array.astype(np.float32)).astype(array.dtype)
    return moved


def stage(engine: Any, store: WeightStore, manifest: WeightManifest, round_id: str = "r") -> str:
    """Stages a version and returns the error, empty if there is none."""
    engine.lease.take(round_id, 60)
    applied = engine.applied if engine.intact else None
    engine.stager.begin(store.root, manifest.version, manifest.content_sha256, applied)
    if engine.stager._thread is not None:
        engine.stager._thread.join()
    return engine.stager.status()[2]


def apply(engine: Any, store: WeightStore, manifest: WeightManifest, round_id: str = "r") -> None:
    assert stage(engine, store, manifest, round_id) == ""
    engine.update_weights(
        {"version": manifest.version, "content_sha256": manifest.content_sha256, "round_id": round_id}
    )


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[WeightStore, Publisher]]:
    store = WeightStore(tmp_path / "weights", "run")
    publisher = Publisher(store, StoreSettings(anchor_every=NUM_UPDATES + 10), log=lambda *_, **__: None)
    yield store, publisher
    publisher.close()


def publish(publisher: Publisher, weights: Weights) -> WeightManifest:
    return publisher.publish(weights.items(), step=0, golden=[])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
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
