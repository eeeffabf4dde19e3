"""vLLM's own models and Weir's engine over them, built in this process without a server around them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from learner_jax.contracts.model import hf_shapes, read_model_config
from learner_jax.contracts.weights import WeightManifest
from serving_bridge.weights.files import Tensor
from serving_bridge.weights.store import WeightStore

Weights = dict[str, np.ndarray]

#: vLLM's config by config.json and dtype: making one takes longer than making a model.
_CONFIGS: dict[tuple[str, str], Any] = {}


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

    key = (folder / "config.json").read_text(), dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if key not in _CONFIGS:
            _CONFIGS[key] = EngineArgs(
                model=str(folder),
                dtype=dtype,
                max_model_len=64,
                enforce_eager=True,
                load_format="dummy",
                skip_tokenizer_init=True,
            ).create_engine_config()
        config = _CONFIGS[key]
        config.compilation_config.static_forward_context.clear()  # of the model before
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
    engine.stager.begin(store, manifest.version, manifest.content_sha256, applied)
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
