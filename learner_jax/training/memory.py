"""Bytes per device of the learner's train step, by tenant, from shapes alone.

Exact by the sharding rules: parameters, moments, gradients, batches and copies. Traced and counted: what the
programs hold for a while (`temporaries`).

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

import math
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh

from learner_jax.batches import abstract_batch
from learner_jax.contracts import ModelConfig
from learner_jax.models import Implementation, abstract_parameters, sharding
from learner_jax.models import value as value_model
from learner_jax.settings import LearnerSettings
from learner_jax.training.engine import Engine
from learner_jax.training.memory_plan import Plan, Program, Tenant
from learner_jax.training.optimizer import make_optimizer
from learner_jax.training.temporaries import DTYPE_BYTES, FP32_BYTES, fullest_phase, share_of

_LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
#: Code that is never run need not be fast; buffers are the same.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


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
    share = share_of(model, settings, mesh, row_tokens, attention)
    phase, temporaries = fullest_phase(model, settings, mesh, share, attention, platform, outputs)
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
    published = policy // FP32_BYTES * DTYPE_BYTES[settings.publish_dtype] * copies
    kept = [Tenant("published", published, f"{copies} versions, {settings.publish_dtype}")]
    if settings.loss.kl.coefficient > 0:
        kept.append(Tenant("reference", policy, "the frozen policy of the KL, fp32"))
    return tuple(kept)
