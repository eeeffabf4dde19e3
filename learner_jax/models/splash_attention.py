"""Attention "splash": the Pallas kernel of that name, on TPUs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def splash(query: Array, key: Array, value: Array, segments: Array | None, *, block: int, interpret: bool) -> Array:
    """Mixes the values that each slot sees; arguments as of `attention.attend`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, heads, head_dim = query.shape
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    causal = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    kernel = kernels.make_splash_mha(causal, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)

    def row(query: Array, key: Array, value: Array, segments: Array | None) -> Array:
        return kernel(query, key, value, None if segments is None else kernels.SegmentIds(q=segments, kv=segments))

    # The kernel scales nothing. In bf16 this rounds the queries once more unless sqrt(H) is a power of 2.
    query = (query.astype(jnp.float32) / math.sqrt(head_dim)).astype(query.dtype)
    rows: Callable[..., Array] = jax.vmap(row)
    if query.dtype == jnp.float32:
        rows = _in_full_precision(rows)
    return rows(*(x.swapaxes(1, 2) for x in (query, key, value)), segments).swapaxes(1, 2)


def _in_full_precision(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """Traces the matmuls of both passes for fp32; the backward one is traced where the caller's precision is gone."""

    def forward(*operands: Array) -> Any:
        with jax.default_matmul_precision("highest"):
            return jax.vjp(kernel, *operands)

    def backward(pull_back: Any, cotangent: Array) -> Any:
        with jax.default_matmul_precision("highest"):
            return pull_back(cotangent)

    call = jax.custom_vjp(lambda *operands: forward(*operands)[0])
    call.defvjp(forward, backward)
    return call
