"""Small checkpoints and model folders for the tests of conversion, of the learner's making and of others'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from flax.traverse_util import flatten_dict

from learner_jax.checkpoints.checkpoints import Checkpoints, Position
from learner_jax.contracts import model as hf_names
from learner_jax.models import hf_folder as hf_io
from learner_jax.settings.learner import OptimizerSettings
from learner_jax.training.optimizer import make_optimizer
from learner_jax.training.train_step import init_state
from tests.support.decoders import tiny_config

QWEN = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
    "max_position_embeddings": 128,
    "dtype": "float32",
}
CONFIG = tiny_config()


def write_config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(QWEN | changes))
    return folder


def save_learner_checkpoint(folder: Path, params: Any, *, step: int = 3) -> Path:
    checkpoints = Checkpoints(folder, keep=1)
    state = init_state(jax.tree.map(jnp.asarray, params), make_optimizer(OptimizerSettings()), seed=0)
    checkpoints.save(state, Position(step, 1, 0, ()))
    checkpoints.close()
    return folder


def save_foreign(folder: Path, params: Any, chunks: Callable[[tuple[int, ...]], tuple[int, ...]], **spec: Any) -> Path:
    """A checkpoint with chunks of any shape, in the files that Orbax writes."""
    state = folder / "state"
    state.mkdir(parents=True)
    flat = flatten_dict(params, sep=".")
    for path, value in flat.items():
        array = ts.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "ocdbt", "base": f"file://{state}/", "path": f"params.{path}/"},
                "metadata": {"chunks": list(chunks(value.shape))} | spec,
            },
            create=True,
            dtype="float32",
            shape=list(value.shape),
        ).result()
        array.write(np.asarray(value)).result()
    tree = {str(("params", *path.split("."))): {} for path in flat}
    (state / "_METADATA").write_text(json.dumps({"tree_metadata": tree, "use_ocdbt": True, "use_zarr3": False}))
    return folder


def expected_tensors(params: Any, dtype: str = "float32", config: hf_names.ModelConfig = CONFIG) -> dict[str, Any]:
    return dict(hf_io.export_tensors(params, config, dtype))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name
