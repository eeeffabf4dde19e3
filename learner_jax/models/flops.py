"""Floating-point operations of a train step, counted from real tokens only, and what a device can do at most."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from learner_jax.contracts import ModelConfig, parameters
from learner_jax.models.layout import NONE, Layout


def body_parameters(config: ModelConfig) -> int:
    """Parameters that multiply every token: the layers' matrices."""
    return config.num_layers * sum(
        row.shape[0] * row.shape[1] for row in parameters(config) if row.stacked and len(row.shape) == 2
    )


def train_step_flops(config: ModelConfig, layout: Layout, num_scored: int) -> float:
    """Forward and backward pass over packed rows; recomputation, padding and masked pairs do not count.

    6 per parameter and token, the output head on scored tokens only, and 12 x layers x heads x head size for each pair
    of a token and one that it sees (the forward pass has 2 matmuls of 2 flops; the backward pass costs twice as much),
    as in PaLM (arXiv 2204.02311, appendix B), there without the causal half.
    """
    real = np.asarray(layout.segments) != NONE
    pairs = float((np.asarray(layout.positions, np.float64) + 1.0)[real].sum())
    attention = 12.0 * config.num_layers * config.num_heads * config.head_dim * pairs
    head = 6.0 * config.vocab_size * config.hidden_size * num_scored
    return 6.0 * body_parameters(config) * float(real.sum()) + head + attention


def attention_weight(config: ModelConfig) -> float:
    """Cost of attending to one slot, over that of all that the layers' matmuls do for one: for `packing.pack_rows`."""
    per_pair = 2.0 * config.num_layers * config.num_heads * config.head_dim  # of 4, half are masked by causality
    return per_pair / (2.0 * body_parameters(config))


def matmul_peak(device: jax.Device, dtype: str, *, size: int | None = None) -> float:
    """FLOP/s of the best of several square matmuls on one device: what utilisation is measured against.

    Args:
      size: rows and columns; 8192 on an accelerator, 1024 on a CPU by default.
    """
    size = size or (1024 if device.platform == "cpu" else 8192)
    matrix = jax.device_put(jnp.ones((size, size), dtype), device)
    precision = "highest" if dtype == "float32" else "default"
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    jax.block_until_ready(multiply(matrix, matrix))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
