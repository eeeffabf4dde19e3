"""Attention "xla": pairs of blocks of queries and keys in two loops, with the softmax computed online.

Dao et al. (arXiv 2205.14135), algorithm 1; scores are recomputed in the backward pass (algorithm 4), so that memory is
linear in T and the program's size constant. Heads are [B, K, G, T, H], G = N / K, so that the queries of a key head are
the rows of one matmul.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

#: Name of the output and its logsumexp to `jax.checkpoint` policies (`save_only_these_names`).
RESIDUALS = "attention"

# Fill of hidden scores, and the running maximum before any was seen: lower than every real score, yet so far above the
# fill that a block without visible keys adds exp(_HIDDEN - _UNSEEN) = 0.
_HIDDEN, _UNSEEN = -1e30, -1e29

#: Segments and prefixes, or None where every row is one sequence.
_Labels = tuple[Array, Array] | None


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def blockwise(query: Array, key: Array, value: Array, labels: _Labels, block: int) -> Array:
    """Mixes the values that each slot sees, as `attention.attend`, in blocks of so many slots."""
    return _forward(query, key, value, labels, block)[0]


def _forward(query: Array, key: Array, value: Array, labels: _Labels, block: int) -> tuple[Array, Any]:
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


def _backward(block: int, residuals: Any, cotangent: Array) -> tuple[Array, Array, Array, None]:
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


blockwise.defvjp(_forward, _backward)


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
