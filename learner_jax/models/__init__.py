"""The decoder and its heads: parameters, layers, kernels, and where each array lies on the mesh."""

from learner_jax.models.attention import ACCELERATOR_BLOCK, Implementation
from learner_jax.models.decoder import (
    ComputeDtype,
    Decoder,
    Remat,
    TokenStats,
    merge,
    token_logprobs,
)
from learner_jax.models.head import fused_loss, scored_stats
from learner_jax.models.hf_folder import COMPANION_FILES, export_tensors, load_parameters
from learner_jax.models.layers import MLP, Attention, Layer
from learner_jax.models.layout import NONE, Layout
from learner_jax.models.parameters import Params, abstract_parameters, init_parameters
from learner_jax.models.sharding import ShardingError
from learner_jax.models.value import KEY, split_parameters

__all__ = [
    "ACCELERATOR_BLOCK",
    "COMPANION_FILES",
    "KEY",
    "MLP",
    "NONE",
    "Attention",
    "ComputeDtype",
    "Decoder",
    "Implementation",
    "Layer",
    "Layout",
    "Params",
    "Remat",
    "ShardingError",
    "TokenStats",
    "abstract_parameters",
    "export_tensors",
    "fused_loss",
    "init_parameters",
    "load_parameters",
    "merge",
    "scored_stats",
    "split_parameters",
    "token_logprobs",
]
