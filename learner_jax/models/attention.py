"""Causal grouped-query attention over packed rows: one kernel per platform, chosen by a table.

Query slot q sees key slot k where k <= q and k's segment is q's own or q's prefix (`layout.Layout`). Scores are scaled
by 1/sqrt(H); softmax is fp32. No kernel holds a [T, T] array. Output on padding is finite and means nothing; where
its cotangent is 0, nothing flows back from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from learner_jax.models.blockwise_attention import blockwise
from learner_jax.models.cudnn_attention import cudnn
from learner_jax.models.splash_attention import splash

Implementation = Literal["xla", "cudnn", "splash"]

_IMPLEMENTATIONS: Mapping[str, Mapping[str, Implementation]] = {
    "cpu": {"float32": "xla", "bfloat16": "xla"},
    "gpu": {"float32": "xla", "bfloat16": "cudnn"},  # cuDNN's flash attention takes no fp32
    "tpu": {"float32": "splash", "bfloat16": "splash"},
}

#: Mesh axes that rows and heads are cut over, as in `sharding.RULES`.
_ROWS, _HEADS = ("data", "fsdp"), "tensor"

# On a CPU the scores of a block should stay in cache; elsewhere a matmul must be large enough to be worth its launch.
_CPU_BLOCK, ACCELERATOR_BLOCK = 64, 512
_SPLASH_BLOCKS = (512, 256, 128)


def attention_implementation(platform: str, compute_dtype: str) -> Implementation:
    """The kernel that a platform (`jax.default_backend()`) runs.

    Raises:
      ValueError: unknown platform or compute dtype.
    """
    try:
        return _IMPLEMENTATIONS[platform][compute_dtype]
    except KeyError:
        raise ValueError(
            f"no attention for platform {platform!r} with compute dtype {compute_dtype!r}; known platforms: "
            f"{', '.join(_IMPLEMENTATIONS)}; known dtypes: {', '.join(_IMPLEMENTATIONS['cpu'])} (learner.compute_dtype)"
        ) from None


def shares_prefixes(implementation: Implementation) -> bool:
    """Whether a segment may see another one, its prefix."""
    return implementation == "xla"


def row_multiple(implementation: Implementation) -> int:
    """What the length of a row must be a multiple of."""
    return _SPLASH_BLOCKS[-1] if implementation == "splash" else 1


def check_supported(
    implementation: Implementation,
    *,
    head_dim: int,
    row_tokens: int,
    packed: bool = True,
    compute_capability: str | None = None,
) -> None:
    """Refuses shapes that a kernel cannot take.

    Args:
      packed: whether rows hold several segments.
      compute_capability: of the GPU, as `jax.Device.compute_capability` has it; None checks what holds for every GPU.
    Raises:
      ValueError: says what was expected and which setting to change.
    """
    other = 'or set learner.attention = "xla"'
    match implementation:
        case "xla":
            return
        case "cudnn":
            capability = tuple(int(part) for part in (compute_capability or "9.0").split("."))
            largest = 256 if capability >= (9, 0) else 128
            if head_dim % 8 or head_dim > largest:
                raise ValueError(
                    f"cuDNN attention expects head_dim to be a multiple of 8 and at most {largest}, got {head_dim}: "
                    f"choose another model {other}"
                )
            if packed and capability < (9, 0):
                raise ValueError(
                    f"cuDNN attention packs segments from compute capability 9.0 up, got {compute_capability}: "
                    f"use one sequence per row {other}"
                )
        case "splash":
            multiple = row_multiple(implementation)
            if row_tokens % multiple:
                raise ValueError(
                    f"splash attention expects rows of a multiple of {multiple} tokens, got {row_tokens}: "
                    f"change learner.row_tokens {other}"
                )
        case _:
            known = ", ".join(get_args(Implementation))
            raise ValueError(f"unknown attention {implementation!r}; known: {known} (learner.attention)")


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    *,
    segments: Int[Array, "B T"] | None,
    prefixes: Int[Array, "B T"] | None,
    implementation: Implementation,
    mesh: jax.sharding.Mesh | None = None,
    block: int | None = None,
    max_segments: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Mixes the values that each slot sees, in the dtype of `query`.

    Args:
      segments: segment number of each slot, -1 on padding; None: every row is one sequence, padded at its right.
        "cudnn" needs the slots of a segment next to each other.
      prefixes: number of each slot's prefix segment; None: no segment sees another one.
      mesh: where the arrays are sharded, rows over (data, fsdp) and heads over tensor, and both must divide. "xla" does
        not need it, the compiler partitions it; the others are opaque to the compiler and would be replicated.
      block: slots per block of queries and of keys; None: what suits the platform. Not used by "cudnn".
      max_segments: most segments that a row may hold, for "cudnn", whose softmax statistics take
        B x max_segments x N x T x 4 bytes. A row that holds more becomes NaN.
      interpret: run "splash" in Pallas' interpreter, for tests without a TPU.
    Raises:
      ValueError: shapes that the kernel cannot take, or shared prefixes where it does not know them.
    """
    _, length, heads, head_dim = query.shape
    if heads % key.shape[2]:
        raise ValueError(f"expected query heads to be a multiple of the key heads, got {heads} and {key.shape[2]}")
    check_supported(implementation, head_dim=head_dim, row_tokens=length, packed=segments is not None)
    if segments is None and prefixes is not None:
        raise ValueError("expected segments where there are prefixes, got None")
    if prefixes is None or prefixes is segments:
        prefixes = segments
    elif not shares_prefixes(implementation):
        raise ValueError(
            f"{implementation} attention knows no shared prefixes: expected prefixes to be None, got an array; "
            f'pack with learner.share_prompts = "never" or set learner.attention = "xla"'
        )
    match implementation:
        case "xla":
            block = min(length, block or (_CPU_BLOCK if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK))
            labels = None if segments is None or prefixes is None else (segments, prefixes)
            return blockwise(query, key, value, labels, block)
        case "cudnn":
            return _over_mesh(partial(cudnn, max_segments=max_segments), mesh, query, key, value, segments)
        case "splash":
            block = block or next(size for size in _SPLASH_BLOCKS if length % size == 0)
            return _over_mesh(partial(splash, block=block, interpret=interpret), mesh, query, key, value, segments)


def _over_mesh(kernel: Callable[..., Array], mesh: jax.sharding.Mesh | None, *operands: Array | None) -> Array:
    """Each device runs the kernel on its own rows and heads of queries, keys, values and segments."""
    if mesh is None:
        return kernel(*operands)
    slots, rows = PartitionSpec(_ROWS, None, _HEADS, None), PartitionSpec(_ROWS, None)
    # Kernels don't say over which mesh axes their results vary, so that check can't pass.
    sharded = jax.shard_map(kernel, mesh=mesh, in_specs=(slots, slots, slots, rows), out_specs=slots, check_vma=False)
    return sharded(*operands)
