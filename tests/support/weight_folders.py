"""A model folder's tensors, whole and in shards, for tests of those who check and read them."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from learner_jax.models import hf_folder as hf_io
from tests.support.decoders import lively_parameters, tiny_config

CONFIG = tiny_config()
UP = "model.layers.1.mlp.up_proj.weight"
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return dict(hf_io.export_tensors(lively_parameters(CONFIG), CONFIG, "float32"))


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A whole model folder in three shards."""
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    (tmp_path / "model").mkdir()
    huggingface_hub.save_torch_state_dict(state, tmp_path / "model", max_shard_size=30_000)
    return tmp_path / "model"


def same_bytes(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return {k: (v.dtype, v.shape, v.tobytes()) for k, v in a.items()} == {
        k: (v.dtype, v.shape, v.tobytes()) for k, v in b.items()
    }
