"""Causal grouped-query attention over packed rows: one kernel per platform, chosen by a table.

Query slot q sees key slot k where k <= q and k's segment is q's own or q's prefix (`layout.Layout`). Scores are scaled
by 1/sqrt(H); softmax is fp32. No kernel holds a [T, T] array. Output on padding is finite and means nothing; where
its cotangent is 0, nothing flows back from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

Implementation = Literal["xla", "cudnn", "splash"]

_IMPLEMENTATIONS: Mapping[str, Mapping[str, Implementation]] = {
    "cpu": {"float32": "xla", "bfloat16": "xla"},
    "gpu": {"float32": "xla", "bfloat16": "cudnn"},  # cuDNN's flash attention takes no fp32
    "tpu": {"float32": "splash", "bfloat16": "splash"},
}

#: Name of the output and its logsumexp to `jax.checkpoint` policies (`save_only_these_names`), for "xla".
RESIDUALS = "attention"

#: Mesh axes that rows and heads are cut over, as in `sharding.RULES`.
_ROWS, _HEADS = ("data", "fsdp"), "tensor"

# On a CPU the scores of a block should stay in cache; elsewhere a matmul must be large enough to be worth its launch.
_CPU_BLOCK, ACCELERATOR_BLOCK = 64, 512
_SPLASH_BLOCKS = (512, 256, 128)

# Fill of hidden scores, and the running maximum before any was seen: lower than every real score, yet so far above the
# fill that a block without visible keys adds exp(_HIDDEN - _UNSEEN) = 0.
_HIDDEN, _UNSEEN = -1e30, -1e29


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
            return _blockwise(query, key, value, labels, block)
        case "cudnn":
            return _over_mesh(partial(_cudnn, max_segments=max_segments), mesh, query, key, value, segments)
        case "splash":
            block = block or next(size for size in _SPLASH_BLOCKS if length % size == 0)
            return _over_mesh(partial(_splash, block=block, interpret=interpret), mesh, query, key, value, segments)


def _over_mesh(kernel: Callable[..., Array], mesh: jax.sharding.Mesh | None, *operands: Array | None) -> Array:
    """Each device runs the kernel on its own rows and heads of queries, keys, values and segments."""
    if mesh is None:
        return kernel(*operands)
    slots, rows = PartitionSpec(_ROWS, None, _HEADS, None), PartitionSpec(_ROWS, None)
    # Kernels don't say over which mesh axes their results vary, so that check can't pass.
    sharded = jax.shard_map(kernel, mesh=mesh, in_specs=(slots, slots, slots, rows), out_specs=slots, check_vma=False)
    return sharded(*operands)


# "xla": pairs of blocks in two loops, with the softmax computed online (Dao et al., arXiv 2205.14135, algorithm 1) and
# scores recomputed in the backward pass (algorithm 4), so that memory is linear in T and the program's size constant.
# Heads are [B, K, G, T, H], G = N / K, so that the queries of a key head are the rows of one matmul.


#: Segments and prefixes, or None where every row is one sequence.
_Labels = tuple[Array, Array] | None


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(query: Array, key: Array, value: Array, labels: _Labels, block: int) -> Array:
    return _blockwise_forward(query, key, value, labels, block)[0]


def _blockwise_forward(query: Array, key: Array, value: Array, labels: _Labels, block: int) -> tuple[Array, Any]:
    q, k, v = _operands(query, key, value, block)
    batch, kv_heads, group, length, _ = q.shape
    see, starts = _visibility(labels, length, block)

    def query_block(i: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
        q_i = _cut(q, i, block, 3)

        def key_block(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            mixed, highest, total = state
            scores = jnp.where(see(i, j), _scores(q_i, _cut(k, j, block, 2)), _HIDDEN)
            new_highest = jnp.maximum(highest, scores.max(axis=-1, keepdims=True))
            p = jnp.exp(scores - new_highest)
            kept = jnp.exp(highest - new_highest)
            mixed = mixed * kept + _combine(p, _cut(v, j, block, 2))
            return mixed, new_highest, total * kept + p.sum(axis=-1, keepdims=True)

        column = (batch, kv_heads, group, block, 1)
        state = (jnp.zeros_like(q_i), jnp.full(column, _UNSEEN, q.dtype), jnp.zeros(column, q.dtype))
        mixed, highest, total = lax.fori_loop(starts[i], i + 1, key_block, state)
        return _put(done[0], mixed / total, i, 3), _put(done[1], highest + jnp.log(total), i, 3)

    done = (jnp.zeros_like(q), jnp.zeros((batch, kv_heads, group, length, 1), q.dtype))
    mixed, logsumexp = lax.fori_loop(0, length // block, query_block, done)
    output = checkpoint_name(_slots(mixed, query), RESIDUALS)
    return output, (query, key, value, labels, output, checkpoint_name(logsumexp, RESIDUALS))


def _blockwise_backward(block: int, residuals: Any, cotangent: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, labels, output, logsumexp = residuals
    q, k, v = _operands(query, key, value, block)
    d_out = _grouped(cotangent.astype(q.dtype), k.shape[1], block)
    # D of the paper: what normalising takes from every gradient of a query's scores.
    correction = jnp.sum(d_out * _grouped(output.astype(q.dtype), k.shape[1], block), axis=-1, keepdims=True)
    see, starts = _visibility(labels, q.shape[3], block)

    def query_block(i: Array, gradients: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        q_i, d_out_i, correction_i, logsumexp_i = (_cut(x, i, block, 3) for x in (q, d_out, correction, logsumexp))

        def key_block(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq_i, dk, dv = state
            k_j, v_j = _cut(k, j, block, 2), _cut(v, j, block, 2)
            # Zeroed after the exponential: a hidden score may exceed the logsumexp of those seen.
            p = jnp.where(see(i, j), jnp.exp(_scores(q_i, k_j) - logsumexp_i), 0.0)
            d_scores = p * (_scores(d_out_i, v_j) - correction_i)
            dk = _put(dk, _cut(dk, j, block, 2) + _collect(d_scores, q_i), j, 2)
            dv = _put(dv, _cut(dv, j, block, 2) + _collect(p, d_out_i), j, 2)
            return dq_i + _combine(d_scores, k_j), dk, dv

        dq, dk, dv = gradients
        dq_i, dk, dv = lax.fori_loop(starts[i], i + 1, key_block, (jnp.zeros_like(q_i), dk, dv))
        return _put(dq, dq_i, i, 3), dk, dv

    zeros = (jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v))
    dq, dk, dv = lax.fori_loop(0, q.shape[3] // block, query_block, zeros)
    dq = dq / math.sqrt(q.shape[-1])
    return _slots(dq, query), _slots(dk[:, :, None], key), _slots(dv[:, :, None], value), None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _operands(query: Array, key: Array, value: Array, block: int) -> tuple[Array, Array, Array]:
    """Scaled queries [B, K, G, T', H], and keys and values [B, K, T', H]; fp32, T padded to whole blocks."""
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    kv_heads = key.shape[2]
    q = _grouped(q / math.sqrt(query.shape[-1]), kv_heads, block)
    return q, _grouped(k, kv_heads, block)[:, :, 0], _grouped(v, kv_heads, block)[:, :, 0]


def _grouped(x: Float[Array, "B T N H"], kv_heads: int, block: int) -> Float[Array, "B K G t H"]:
    batch, length, heads, head_dim = x.shape
    x = jnp.pad(x, [(0, 0), (0, -length % block), (0, 0), (0, 0)])
    return x.reshape(batch, -1, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)


def _slots(x: Float[Array, "B K G t H"], like: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    return x.transpose(0, 3, 1, 2, 4).reshape(x.shape[0], -1, *like.shape[2:])[:, : like.shape[1]].astype(like.dtype)


def _cut(x: Array, index: Array, block: int, axis: int) -> Array:
    return lax.dynamic_slice_in_dim(x, index * block, block, axis)


def _put(x: Array, part: Array, index: Array, axis: int) -> Array:
    return lax.dynamic_update_slice_in_dim(x, part, index * part.shape[axis], axis)


# fp32 means fp32 in both passes; the backward one is traced where the caller's matmul precision no longer holds.
_matmul = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


# Explicit rows of queries and heads: XLA's CPU backend is slower where it has to merge the two itself.
def _rows(x: Float[Array, "B K G t c"]) -> Float[Array, "B K r c"]:
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _scores(x: Float[Array, "B K G q H"], y: Float[Array, "B K k H"]) -> Float[Array, "B K G q k"]:
    return _matmul("bkrh,bksh->bkrs", _rows(x), y).reshape(*x.shape[:4], -1)


def _combine(weights: Float[Array, "B K G q k"], y: Float[Array, "B K k H"]) -> Float[Array, "B K G q H"]:
    return _matmul("bkrs,bksh->bkrh", _rows(weights), y).reshape(*weights.shape[:4], -1)


def _collect(weights: Float[Array, "B K G q k"], x: Float[Array, "B K G q H"]) -> Float[Array, "B K k H"]:
    return _matmul("bkrs,bkrh->bksh", _rows(weights), _rows(x))


def _visibility(labels: _Labels, length: int, block: int) -> tuple[Callable[[Array, Array], Array], Int[Array, "n"]]:
    """What block i of queries sees of block j of keys, bool[B or 1, 1, 1, q, k]; and its first block of keys to visit.

    The first blocks are right for any order of segments, and skip most where segments count up along the row. Padding
    asks for no earlier block: a slot that sees itself is finite.
    """
    slots = jnp.arange(block)
    num_blocks = length // block

    def causal(i: Array, j: Array) -> Array:
        return (j * block + slots <= i * block + slots[:, None])[None, None, None]

    if labels is None:
        return causal, jnp.zeros(num_blocks, jnp.int32)
    own, prefix = (jnp.pad(x, [(0, 0), (0, length - x.shape[1])], constant_values=-1) for x in labels)
    blocks = (own.shape[0], num_blocks, block)
    lowest = jnp.where(own < 0, length, jnp.minimum(own, prefix)).reshape(blocks).min(axis=-1)
    reached = jnp.any(own.reshape(blocks).max(axis=-1)[:, None, :] >= lowest[:, :, None], axis=0)
    last = jnp.arange(num_blocks)
    starts = jnp.where(reached.any(axis=-1), jnp.minimum(jnp.argmax(reached, axis=-1), last), last)

    def see(i: Array, j: Array) -> Array:
        key = _cut(own, j, block, 1)[:, None, :]
        related = (key == _cut(own, i, block, 1)[:, :, None]) | (key == _cut(prefix, i, block, 1)[:, :, None])
        return causal(i, j) & related[:, None, None]

    return see, starts


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


def _cudnn(query: Array, key: Array, value: Array, segments: Array | None, *, max_segments: int | None) -> Array:
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


def _splash(query: Array, key: Array, value: Array, segments: Array | None, *, block: int, interpret: bool) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, heads, head_dim = query.shape
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    causal = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    kernel = splash.make_splash_mha(causal, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)

    def row(query: Array, key: Array, value: Array, segments: Array | None) -> Array:
        return kernel(query, key, value, None if segments is None else splash.SegmentIds(q=segments, kv=segments))

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
