"""Orbax checkpoints to Hugging Face folders and back; the one place outside the learner that touches JAX."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import jax

from learner_jax.checkpoint import CheckpointError, Checkpoints, Position, restore_parameters
from learner_jax.config import OptimizerSettings
from learner_jax.hf_io import export_tensors, load_parameters, write_model
from learner_jax.hf_names import read_model_config
from learner_jax.optimizer import make_optimizer
from learner_jax.train_step import init_state


def to_hf(
    checkpoint: str | Path, *, model_dir: str | Path, out: str | Path, dtype: Literal["float32", "bfloat16"]
) -> None:
    """Writes a checkpoint's parameters as a Hugging Face folder that transformers and vLLM load unchanged.

    Args:
      checkpoint: one checkpoint, or a folder of them (the newest is taken).
      model_dir: folder whose config.json, tokenizer and generation settings the new one gets.
      dtype: of the tensors written.

    Raises:
      CheckpointError, ModelConfigError, ValueError: the message names what is missing, damaged or of another shape.
    """
    config = read_model_config(model_dir)
    params = restore_parameters(checkpoint)
    write_model(out, export_tensors(params, config, dtype), model_dir)


def from_hf(model_dir: str | Path, *, out: str | Path, seed: int = 0) -> None:
    """Writes a Hugging Face folder's weights as a checkpoint at step 0, with a fresh optimizer.

    Raises:
      CheckpointError, ModelConfigError, ValueError: `out` holds something already, or the folder is no such model.
    """
    if Path(out).exists() and any(Path(out).iterdir()):
        raise CheckpointError(f"{out} is not empty; name a folder that does not exist yet")
    config = read_model_config(model_dir)
    params = jax.device_put(load_parameters(model_dir, config))
    state = init_state(params, make_optimizer(OptimizerSettings()), seed=seed)
    checkpoints = Checkpoints(out, keep=1)
    try:
        checkpoints.save(state, Position(0, -1, 0, ()))
    finally:
        checkpoints.close()
