"""Attention "cudnn": cuDNN's flash attention over packed rows, bf16, on NVIDIA GPUs."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def segment_offsets(segments: Int[Array, "B T"], max_segments: int) -> tuple[Array, Array, Array]:
    """First slot [B, M + 1] and length [B, M] of each segment, -1 where there is none; and segments per row [B].

    M is `max_segments`, and at least 2, below which JAX takes the row to be unpacked.
    """
    numbers = jnp.arange(max(2, max_segments), dtype=jnp.int32)
    member = segments[:, None, :] == numbers[:, None]
    lengths = member.sum(axis=-1, dtype=jnp.int32)
    starts = jnp.argmax(member, axis=-1).astype(jnp.int32)
    starts, lengths = jnp.where(lengths > 0, starts, -1), jnp.where(lengths > 0, lengths, -1)
    return jnp.pad(starts, [(0, 0), (0, 1)], constant_values=-1), lengths, segments.max(axis=1) + 1


def cudnn(query: Array, key: Array, value: Array, segments: Array | None, *, max_segments: int | None) -> Array:
    """Mixes the values that each slot sees; arguments as of `attention.attend`."""
    if query.dtype != jnp.bfloat16:
        raise ValueError(f"cuDNN attention expects bfloat16, got {query.dtype} (learner.compute_dtype)")
    if segments is None:
        return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")
    if max_segments is None:
        raise ValueError("cuDNN attention over packed rows expects max_segments, got None")
    if query.size >= 2**31:
        raise ValueError(
            f"cuDNN attention expects fewer than 2**31 query elements per device, as its offsets are int32, got "
            f"{query.size}: lower learner.microbatch_rows"
        )
    # `jax.nn.dot_product_attention` has no offsets; the function that it calls for cuDNN does.
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    starts, lengths, num_segments = segment_offsets(segments, max_segments)
    # cuDNN neither reads nor writes padding: what it leaves there must reach no output and no gradient.
    real = (segments >= 0)[:, :, None, None]
    query, key, value = (jnp.where(real, x, 0) for x in (query, key, value))
    # Before jax-ml/jax#39521, JAX scales the offsets of keys by the number of query heads, so the two must agree.
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    packed: dict[str, Any] = {"q_seqlen": lengths, "kv_seqlen": lengths, "q_offsets": starts, "kv_offsets": starts}
    scale = 1.0 / math.sqrt(query.shape[-1])
    output = dot_product_attention(query, key, value, **packed, scale=scale, mask_type=MaskType.PADDING_CAUSAL)
    too_many = (num_segments > max_segments)[:, None, None, None]
    return jnp.where(too_many, jnp.nan, jnp.where(real, output, 0)).astype(query.dtype)
