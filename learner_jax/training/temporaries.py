"""Bytes of the train step's temporaries on one device: kept activations, and the fullest moment of a backward pass.

Traced: the activations that a remat policy keeps, the residuals of one device's share of a layer. Counted: the arrays
that one layer's backward pass and one chunk of the head hold at once (`_LAYER_PHASES`, `_HEAD_CHUNK_ARRAYS`), from the
code, and checked against XLA's buffer assignment in fp32 on CPU devices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from learner_jax.contracts import ModelConfig, parameters
from learner_jax.models import (
    ACCELERATOR_BLOCK,
    ComputeDtype,
    Implementation,
    Remat,
    abstract_parameters,
    merge,
    sharding,
)
from learner_jax.settings import LearnerSettings
from learner_jax.training.memory_plan import Tenant, total_bytes
from learner_jax.training.packed_model import MAX_SEGMENTS

FP32_BYTES = 4
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}

#: [chunk, vocabulary] fp32 arrays of the head at once: logits, what is relative to the peak, exponentials.
_HEAD_CHUNK_ARRAYS = 3


@dataclass(frozen=True)
class _Arrays:
    """How many arrays of each width a phase holds, per token slot of a device.

    Attributes:
      stream: width D, the residual stream, its norms and their cotangents.
      queries: width N x H.
      keys: width K x H.
      mlp: width F.
    """

    stream: int
    queries: int
    keys: int
    mlp: int


#: What the backward pass of one layer holds at its fullest moments, by remat policy.
#: Feed-forward: gate, up, silu(gate), the product's cotangent and that of gate or up are `mlp`; input, attention's
#: residual sum, its norm, and cotangents are `stream`. With "full", attention was computed again before: projection,
#: operands, output in both orders and the accumulator of the queries' gradient wait. With "matmuls" what follows from
#: its output was kept, so that it is computed again only when its own turn comes.
#: Attention: queries as projected, rotated and as operands, output, cotangent and gradient, some in both orders.
_LAYER_PHASES: Mapping[str, Mapping[str, _Arrays]] = MappingProxyType(
    {
        "full": {
            "feed-forward": _Arrays(stream=6, queries=5, keys=3, mlp=5),
            "norm": _Arrays(stream=8, queries=5, keys=3, mlp=0),
            "attention": _Arrays(stream=3, queries=8, keys=4, mlp=0),
        },
        "matmuls": {
            "feed-forward": _Arrays(stream=4, queries=0, keys=0, mlp=5),
            "attention": _Arrays(stream=3, queries=8, keys=4, mlp=0),
        },
        "none": {
            "feed-forward": _Arrays(stream=3, queries=0, keys=0, mlp=4),
            "attention": _Arrays(stream=3, queries=5, keys=4, mlp=0),
        },
    }
)


@dataclass(frozen=True)
class Share:
    """One device's share of the model and of a microbatch.

    Attributes:
      config: the model with the heads and feed-forward width that lie on one device, vocabulary included.
      item, attention_item: bytes of an activation's element; of those inside attention, which "xla" makes fp32.
    """

    config: ModelConfig
    rows: int
    row_tokens: int
    item: int
    attention_item: int

    @property
    def slots(self) -> int:
        """Token slots of a microbatch."""
        return self.rows * self.row_tokens

    def bytes_of(self, arrays: _Arrays) -> tuple[int, int, int]:
        """Bytes of the residual stream, of attention and of the feed-forward part of a phase."""
        c = self.config
        attention = arrays.queries * c.num_heads * c.head_dim + arrays.keys * c.num_kv_heads * c.head_dim
        stream, mlp = arrays.stream * c.hidden_size * self.item, arrays.mlp * c.intermediate_size * self.item
        return self.slots * stream, self.slots * attention * self.attention_item, self.slots * mlp


def share_of(
    model: ModelConfig, settings: LearnerSettings, mesh: Any, row_tokens: int, attention: Implementation
) -> Share:
    """What one device of a mesh holds of the model and of a microbatch."""
    tensor = mesh.shape["tensor"]
    config = dataclasses.replace(
        model,
        num_heads=model.num_heads // tensor,
        num_kv_heads=model.num_kv_heads // tensor,
        intermediate_size=model.intermediate_size // tensor,
        vocab_size=model.vocab_size // tensor,
    )
    rows = settings.microbatch_rows // sharding.num_row_shards(mesh)
    item = DTYPE_BYTES[settings.compute_dtype]
    return Share(config, rows, row_tokens, item, FP32_BYTES if attention == "xla" else item)


def fullest_phase(
    model: ModelConfig,
    settings: LearnerSettings,
    mesh: Any,
    share: Share,
    attention: Implementation,
    platform: str,
    outputs: Sequence[int],
) -> tuple[str, tuple[Tenant, ...]]:
    """The program's temporaries at its fullest moment: the head's loop, or somewhere in a layer's backward pass."""
    size = kept_activation_bytes(share.config, settings, rows=share.rows, row_tokens=share.row_tokens)
    if settings.remat == "none":  # a layer's statistics wait for its backward pass like the rest
        size += model.num_layers * _statistics_bytes(share, attention)
    kept = Tenant("activations", size, f'kept of {model.num_layers} layers, remat = "{settings.remat}"')
    phases = {"head": (kept, *_head(settings, share, outputs))}
    for name, arrays in _LAYER_PHASES[settings.remat].items():
        phases[name] = (kept, *_layer(mesh, share, arrays), *_kernel(share, attention, platform))
    name = max(phases, key=lambda phase: total_bytes(phases[phase]))
    return name, phases[name]


def _head(settings: LearnerSettings, share: Share, outputs: Sequence[int]) -> tuple[Tenant, ...]:
    """Of the loop over chunks: hidden states in and out, the gathered weight, its gradient, and one chunk.

    A chunk's share of the gradient is added to it while one array of the chunk is left. Gradients are outputs that are
    not written yet, whose buffers XLA gives to arrays that fit.
    """
    c = share.config
    num_tokens = min(settings.logits_chunk_tokens or share.slots, share.slots)
    chunk = num_tokens * c.vocab_size * FP32_BYTES
    weight, gradient = c.vocab_size * c.hidden_size * share.item, c.vocab_size * c.hidden_size * FP32_BYTES
    scoring = _without_room([weight, gradient], [chunk] * _HEAD_CHUNK_ARRAYS, outputs)
    adding = _without_room([weight, gradient, gradient], [chunk], outputs)
    matrices, chunks = max(scoring, adding, key=sum)
    stream = share.slots * c.hidden_size * (2 * share.item + FP32_BYTES)
    return (
        Tenant("residual stream", stream, "the head's hidden states and their gradient"),
        Tenant("head weight", matrices, "gathered, and its gradient in fp32, outside of gradients' buffers"),
        Tenant("logits chunk", chunks, f"{num_tokens} tokens, fp32, outside of gradients' buffers"),
    )


def _without_room(matrices: Sequence[int], chunks: Sequence[int], outputs: Sequence[int]) -> tuple[int, int]:
    """Bytes of each kind of array that find no free output to lie in: the largest arrays first, the tightest output."""
    free, left = sorted(outputs), [0, 0]
    for size, kind in sorted([*((x, 0) for x in matrices), *((x, 1) for x in chunks)], reverse=True):
        room = next((output for output in free if output >= size), None)
        if room is None:
            left[kind] += size
        else:
            free.remove(room)
    return left[0], left[1]


def _layer(mesh: Any, share: Share, arrays: _Arrays) -> tuple[Tenant, ...]:
    """Of one layer's backward pass; what the head left behind included."""
    c = share.config
    stream, attended, mlp = share.bytes_of(arrays)
    matrices = [math.prod(row.shape) for row in parameters(c) if row.stacked and len(row.shape) == 2]
    reduced = mesh.shape["fsdp"] * mesh.shape["data"] > 1
    waiting = (sum(matrices) if reduced else max(matrices)) * FP32_BYTES
    head_gradient = c.vocab_size * c.hidden_size * FP32_BYTES // mesh.shape["fsdp"]
    return (
        Tenant("residual stream", stream, f"{arrays.stream} arrays of width {c.hidden_size}"),
        Tenant("attention", attended, f"{arrays.queries} arrays of queries, {arrays.keys} of keys or values"),
        Tenant("feed-forward", mlp, f"{arrays.mlp} arrays of width {c.intermediate_size}"),
        Tenant("layer weights", sum(matrices) * share.item, "one layer's matrices where they are used"),
        Tenant("layer gradients", waiting, "one layer's, until reduced over devices" if reduced else "of one matrix"),
        Tenant("head weight", head_gradient, "the head's gradient, until the trunk's is done"),
    )


def _kernel(share: Share, attention: Implementation, platform: str) -> tuple[Tenant, ...]:
    """What the attention kernel itself holds: scores of a pair of blocks, or cuDNN's statistics."""
    size, note = _statistics_bytes(share, attention), f"softmax statistics of {MAX_SEGMENTS} segments"
    if attention == "xla" and platform != "cpu":  # a CPU's blocks fit its cache
        block = min(share.row_tokens, ACCELERATOR_BLOCK)
        size, note = 3 * share.rows * share.config.num_heads * block**2 * FP32_BYTES, "scores of a pair of blocks, fp32"
    return (Tenant("attention kernel", size, note),) if size else ()


def _statistics_bytes(share: Share, attention: Implementation) -> int:
    """cuDNN's softmax statistics of one layer, fp32[B, segments, N, T] (see `attention.attend`)."""
    return share.slots * MAX_SEGMENTS * share.config.num_heads * FP32_BYTES if attention == "cudnn" else 0


def kept_activation_bytes(share: ModelConfig, settings: LearnerSettings, *, rows: int, row_tokens: int) -> int:
    """What the forward pass keeps of all layers: the residuals that JAX hands to the backward pass.

    Casts of weights that are kept are among them. Traced with the "xla" attention, whose residuals the other kernels
    share but for the softmax statistics.

    Args:
      share: the part of the model that lies on one device.
    """
    c = settings
    of_one, of_two = (_residual_bytes(share, c.compute_dtype, c.remat, rows, row_tokens, n) for n in (1, 2))
    trunks = 2 if settings.loss.value.model == "separate" else 1
    return (of_two - of_one) * share.num_layers * trunks


@lru_cache(maxsize=256)
def _residual_bytes(
    share: ModelConfig, compute_dtype: ComputeDtype, remat: Remat, rows: int, row_tokens: int, num_layers: int
) -> int:
    config = dataclasses.replace(share, num_layers=num_layers, vocab_size=1)
    ints = jax.ShapeDtypeStruct((rows, row_tokens), jnp.int32)

    def residuals(params: Any, tokens: Any, positions: Any, segments: Any) -> Any:
        def forward(params: Any) -> Any:
            model = merge(config, params, compute_dtype=compute_dtype, remat=remat, attention="xla")
            return model.hidden_states(tokens, positions, segments, segments)

        return jax.vjp(forward, params)[1]

    given = abstract_parameters(config)
    known = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(given)]
    total = 0
    for leaf in jax.tree.leaves(jax.eval_shape(residuals, given, ints, ints, ints)):
        kind = (leaf.shape, leaf.dtype)
        if kind in known:  # a parameter itself, which is in memory anyway
            known.remove(kind)
        else:
            total += math.prod(leaf.shape) * leaf.dtype.itemsize
    return total
