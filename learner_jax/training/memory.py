"""Bytes per device of the learner's train step, by tenant, from shapes alone.

Exact by the sharding rules: parameters, moments, gradients, batches and copies. Traced: the activations that a remat
policy keeps, the residuals of one device's share of a layer. Counted: the arrays that one layer's backward pass and one
chunk of the head hold at once (`_LAYER_PHASES`, `_HEAD_CHUNK_ARRAYS`), from the code, and checked against XLA's buffer
assignment in fp32 on CPU devices.

Of XLA's CPU backend: its default schedule runs operations ahead and holds up to twice as much; `measure` asks for the
one that holds least, as accelerators' compilers make it. It writes out what other backends fuse: three arrays of the
head's chunk, the sum of the head weight's gradient, clipped gradients and old moments in the update. The prediction
holds them, so it is on the safe side elsewhere. It turns bf16 operands into fp32, among them a copy of all kept
activations: those are not predicted, and a bf16 figure means something on an accelerator only.

Not covered: fragmentation, buffers of collectives, what CUDA and the runtime reserve, kernels' workspaces but for
cuDNN's softmax statistics, forward passes for reference and golden prompts (smaller than the train step), the host's
memory, and the moment of publishing, which holds one published copy more and no activations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh

from learner_jax.batches import abstract_batch
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
from learner_jax.models import value as value_model
from learner_jax.runtime import WeirError
from learner_jax.settings import LearnerSettings
from learner_jax.training.engine import MAX_SEGMENTS, Engine
from learner_jax.training.optimizer import make_optimizer

_FP32 = 4
_LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
#: Code that is never run need not be fast; buffers are the same.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}

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


class PlanError(WeirError, ValueError):
    """What was asked to be planned can't be."""

    can_heal = False


@dataclass(frozen=True)
class Tenant:
    """Something that takes memory of a device.

    Attributes:
      size: bytes per device.
      note: what it is, and in which dtype.
      fusible: whether a backend that fuses elementwise operations over whole leaves, as XLA's for GPUs and TPUs, need
        not hold it; that is not verified here.
    """

    name: str
    size: int
    note: str
    fusible: bool = False


@dataclass(frozen=True)
class Program:
    """One compiled program and what lies on the device beside it.

    Attributes:
      own: what XLA's `memory_analysis` counts: arguments, outputs that are no donated arguments, temporaries.
      beside: what the loop keeps on the device while the program runs.
      phase: the moment at which the program is at its fullest.
    """

    name: str
    own: tuple[Tenant, ...]
    beside: tuple[Tenant, ...]
    phase: str

    @property
    def own_bytes(self) -> int:
        return _total(self.own)

    @property
    def total_bytes(self) -> int:
        return self.own_bytes + _total(self.beside)

    @property
    def fused_bytes(self) -> int:
        """The total without what a fusing backend need not hold."""
        return self.total_bytes - _total(tenant for tenant in self.own if tenant.fusible)


@dataclass(frozen=True)
class Plan:
    """What a train step takes of one device."""

    num_parameters: int
    num_devices: int
    gradients: Program
    update: Program

    @property
    def peak_bytes(self) -> int:
        """Of the fuller program."""
        return max(self.gradients.total_bytes, self.update.total_bytes)

    @property
    def fused_peak_bytes(self) -> int:
        return max(self.gradients.fused_bytes, self.update.fused_bytes)


@dataclass(frozen=True)
class _Share:
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


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    """A mesh of that many devices, none of which need exist."""
    return AbstractMesh((data, fsdp, tensor), sharding.MESH_AXES)


def plan(
    model: ModelConfig,
    settings: LearnerSettings,
    mesh: AbstractMesh,
    *,
    row_tokens: int,
    attention: Implementation,
    platform: str,
) -> Plan:
    """Predicts what the train step takes of each device of `mesh`; `settings.mesh` is not looked at.

    Args:
      attention: kernel; `settings.attention` is not looked at, for "auto" is up to the platform.
      platform: as `jax.default_backend()` names it; sets the block sizes of attention.

    Raises:
      ShardingError: a dimension, or `microbatch_rows`, does not divide by the mesh axes that it is cut over.
    """
    sharding.check_rows(settings.microbatch_rows, mesh)  # type: ignore[arg-type]
    placed, abstract = _placed_parameters(model, settings, mesh)
    outputs = _leaf_bytes(abstract, placed)
    master = sum(outputs)
    state = Tenant("parameters", master, "fp32 master weights")
    moments = Tenant("moments", _moment_bytes(settings, abstract, placed), f"optimizer, {settings.optimizer.moments}")
    grads = Tenant("gradients", master, "fp32")
    batch = _batch_tenant(settings, mesh, row_tokens)
    kept = _kept_copies(model, settings, mesh)
    share = _share(model, settings, mesh, row_tokens, attention)
    phase, temporaries = _fullest_phase(model, settings, mesh, share, attention, platform, outputs)
    accumulator = Tenant("accumulator", master, "fp32 sum of gradients, where a batch has more than one microbatch")
    update_note = "clipped gradients; old moments that donation copies, or normalised updates"
    update = Tenant("update", 2 * master, update_note, fusible=True)
    return Plan(
        num_parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract)),
        num_devices=mesh.size,
        gradients=Program(
            "gradients", (state, grads, batch, *temporaries), (moments, accumulator, batch, *kept), phase
        ),
        update=Program("update", (state, moments, grads, update), (batch, *kept), "all leaves at once"),
    )


def measure(engine: Engine, *, row_tokens: int) -> tuple[int, int]:
    """XLA's own figures for gradients and update, in bytes per device; compiles both and allocates nothing.

    On CPU devices gradients are scheduled to hold least; the update keeps the default order, which holds less there.
    """
    cpu = engine.platform == "cpu"
    gradients, update = engine.lowered(row_tokens)
    return _xla_bytes(gradients, _QUICK | _LEAST_MEMORY if cpu else {}), _xla_bytes(update, _QUICK if cpu else {})


def _xla_bytes(lowered: jax.stages.Lowered, options: dict[str, Any]) -> int:
    figures: Any = lowered.compile(compiler_options=options).memory_analysis()
    held = figures.argument_size_in_bytes + figures.output_size_in_bytes + figures.temp_size_in_bytes
    return int(held - figures.alias_size_in_bytes)


def _total(tenants: Iterable[Tenant]) -> int:
    return sum(tenant.size for tenant in tenants)


def _placed_parameters(model: ModelConfig, settings: LearnerSettings, mesh: Any) -> tuple[Any, Any]:
    """Shardings, and shapes, of the policy's and the value function's parameters."""
    kind = settings.loss.value.model
    placed = sharding.parameter_shardings(model, mesh) | sharding.value_shardings(model, kind, mesh)
    return placed, abstract_parameters(model) | value_model.abstract_value_parameters(model, kind)


def _leaf_bytes(abstract: Any, placed: Any) -> list[int]:
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, abstract, placed)
    return jax.tree.leaves(sizes)


def _moment_bytes(settings: LearnerSettings, abstract: Any, placed: Any) -> int:
    """As the engine places them: like their parameter where they have its shape, whole on every device where not."""
    optimizer = make_optimizer(settings.optimizer)

    def size(leaf: Any, parameter: Any, placed: Any) -> int:
        shape = placed.shard_shape(leaf.shape) if leaf.shape == parameter.shape else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    sizes = optax.tree_map_params(
        optimizer,
        size,
        jax.eval_shape(optimizer.init, abstract),
        abstract,
        placed,
        transform_non_params=lambda leaf: math.prod(leaf.shape) * leaf.dtype.itemsize,
    )
    return sum(jax.tree.leaves(sizes))


def _batch_tenant(settings: LearnerSettings, mesh: Any, row_tokens: int) -> Tenant:
    rows = settings.microbatch_rows // sharding.num_row_shards(mesh)
    batch = abstract_batch(settings.loss, num_rows=rows, row_tokens=row_tokens, minibatches=settings.minibatches)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    return Tenant("batch", size, f"arrays of {rows} rows of {row_tokens} slots")


def _kept_copies(model: ModelConfig, settings: LearnerSettings, mesh: Any) -> tuple[Tenant, ...]:
    """Other parameter sets that the loop holds on the devices."""
    policy = sum(_leaf_bytes(abstract_parameters(model), sharding.parameter_shardings(model, mesh)))
    copies = settings.mismatch_versions + 1
    published = policy // _FP32 * _DTYPE_BYTES[settings.publish_dtype] * copies
    kept = [Tenant("published", published, f"{copies} versions, {settings.publish_dtype}")]
    if settings.loss.kl.coefficient > 0:
        kept.append(Tenant("reference", policy, "the frozen policy of the KL, fp32"))
    return tuple(kept)


def _share(
    model: ModelConfig, settings: LearnerSettings, mesh: Any, row_tokens: int, attention: Implementation
) -> _Share:
    tensor = mesh.shape["tensor"]
    config = dataclasses.replace(
        model,
        num_heads=model.num_heads // tensor,
        num_kv_heads=model.num_kv_heads // tensor,
        intermediate_size=model.intermediate_size // tensor,
        vocab_size=model.vocab_size // tensor,
    )
    rows = settings.microbatch_rows // sharding.num_row_shards(mesh)
    item = _DTYPE_BYTES[settings.compute_dtype]
    return _Share(config, rows, row_tokens, item, _FP32 if attention == "xla" else item)


def _fullest_phase(
    model: ModelConfig,
    settings: LearnerSettings,
    mesh: Any,
    share: _Share,
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
    name = max(phases, key=lambda phase: _total(phases[phase]))
    return name, phases[name]


def _head(settings: LearnerSettings, share: _Share, outputs: Sequence[int]) -> tuple[Tenant, ...]:
    """Of the loop over chunks: hidden states in and out, the gathered weight, its gradient, and one chunk.

    A chunk's share of the gradient is added to it while one array of the chunk is left. Gradients are outputs that are
    not written yet, whose buffers XLA gives to arrays that fit.
    """
    c = share.config
    num_tokens = min(settings.logits_chunk_tokens or share.slots, share.slots)
    chunk = num_tokens * c.vocab_size * _FP32
    weight, gradient = c.vocab_size * c.hidden_size * share.item, c.vocab_size * c.hidden_size * _FP32
    scoring = _without_room([weight, gradient], [chunk] * _HEAD_CHUNK_ARRAYS, outputs)
    adding = _without_room([weight, gradient, gradient], [chunk], outputs)
    matrices, chunks = max(scoring, adding, key=sum)
    stream = share.slots * c.hidden_size * (2 * share.item + _FP32)
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


def _layer(mesh: Any, share: _Share, arrays: _Arrays) -> tuple[Tenant, ...]:
    """Of one layer's backward pass; what the head left behind included."""
    c = share.config
    stream, attended, mlp = share.bytes_of(arrays)
    matrices = [math.prod(row.shape) for row in parameters(c) if row.stacked and len(row.shape) == 2]
    reduced = mesh.shape["fsdp"] * mesh.shape["data"] > 1
    waiting = (sum(matrices) if reduced else max(matrices)) * _FP32
    head_gradient = c.vocab_size * c.hidden_size * _FP32 // mesh.shape["fsdp"]
    return (
        Tenant("residual stream", stream, f"{arrays.stream} arrays of width {c.hidden_size}"),
        Tenant("attention", attended, f"{arrays.queries} arrays of queries, {arrays.keys} of keys or values"),
        Tenant("feed-forward", mlp, f"{arrays.mlp} arrays of width {c.intermediate_size}"),
        Tenant("layer weights", sum(matrices) * share.item, "one layer's matrices where they are used"),
        Tenant("layer gradients", waiting, "one layer's, until reduced over devices" if reduced else "of one matrix"),
        Tenant("head weight", head_gradient, "the head's gradient, until the trunk's is done"),
    )


def _kernel(share: _Share, attention: Implementation, platform: str) -> tuple[Tenant, ...]:
    """What the attention kernel itself holds: scores of a pair of blocks, or cuDNN's statistics."""
    size, note = _statistics_bytes(share, attention), f"softmax statistics of {MAX_SEGMENTS} segments"
    if attention == "xla" and platform != "cpu":  # a CPU's blocks fit its cache
        block = min(share.row_tokens, ACCELERATOR_BLOCK)
        size, note = 3 * share.rows * share.config.num_heads * block**2 * _FP32, "scores of a pair of blocks, fp32"
    return (Tenant("attention kernel", size, note),) if size else ()


def _statistics_bytes(share: _Share, attention: Implementation) -> int:
    """cuDNN's softmax statistics of one layer, fp32[B, segments, N, T] (see `attention.attend`)."""
    return share.slots * MAX_SEGMENTS * share.config.num_heads * _FP32 if attention == "cudnn" else 0


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
