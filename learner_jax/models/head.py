"""The output head fused over chunks of scored tokens: log-probs, entropy, loss and their gradients.

Logits exist for one chunk only, and unscored slots cost nothing: each device brings the scored slots of its rows to
the front and loops, with a traced bound, over as many chunks as they fill, so shapes stay fixed. `fused_loss` has the
gradients ready when its forward pass ends (three matmuls); `scored_stats` keeps a log-normaliser per token and computes
the logits again in its backward pass (four). Both follow "Cut Your Losses" (Wijmans et al., arXiv 2411.09009) in never
holding [tokens, vocabulary], but neither leaves out small gradients: the numbers are those of the plain head.

On a mesh the collectives are written out in the forward and backward functions themselves, inside `shard_map`; nothing
differentiates through `shard_map`, so replication needs no bookkeeping.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

#: Mesh axes that batch rows, the weight's columns and the weight's rows (the vocabulary) are cut over.
ROW_AXES, EMBED_AXIS, VOCAB_AXIS = ("data", "fsdp"), "fsdp", "tensor"

_ROWS, _WEIGHT = P(ROW_AXES), P(VOCAB_AXIS, EMBED_AXIS)
_GRADIENTS = (_ROWS, P(EMBED_AXIS, VOCAB_AXIS))

#: Per slot [B, T], or per token of a chunk [n]: log-prob, entropy, argmax hit, log-normaliser.
_Stats = tuple[Array, ...]
#: fp32: that of hidden [B, T, D], and that of the weight, transposed [D, V].
_Gradients = tuple[Array, Array]
#: Sum of the terms of the tokens given: (log-probs, entropies, per-slot values), all with the same two leading axes.
TokenLoss = Callable[[Array, Array, Any], Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadOutputs:
    """What the head says of each scored slot; zeros and False elsewhere.

    Attributes:
      logprobs: fp32[B, T], nats, at logits / temperature; NaN where the token is not in the vocabulary or has no
        predecessor.
      entropy: fp32[B, T], nats, of the distribution that the token was scored by; NaN without a predecessor.
      argmax_correct: bool[B, T], whether no token has a larger logit (a tie counts as correct).
    """

    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    argmax_correct: Bool[Array, "B T"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Rows:
    """What is known of each slot of a device's rows, besides its hidden state."""

    tokens: Int[Array, "B T"]
    predecessors: Int[Array, "B T"]
    scored: Bool[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Chunk:
    """Some scored slots of a device's rows.

    Attributes:
      slots: flat slot of each token; B * T, beyond the last one, where the chunk has none left.
      sources: flat slot whose hidden state predicts the token; B * T where there is none.
      targets: token id within this device's part of the vocabulary, outside of it where the token is not there.
      has_source: whether there is one.
      known: whether there is one and the token's id is in the whole vocabulary.
      hidden: hidden states of the sources; zeros where there is none, so that all numbers are finite there.
    """

    slots: Int[Array, "n"]
    sources: Int[Array, "n"]
    targets: Int[Array, "n"]
    has_source: Bool[Array, "n"]
    known: Bool[Array, "n"]
    hidden: Float[Array, "n D"]


@dataclass(frozen=True)
class _Plan:
    """The static part of a call; the axes are empty without a mesh."""

    temperature: float
    chunk_tokens: int
    vocab_size: int
    row_axes: tuple[str, ...]
    embed_axes: tuple[str, ...]
    vocab_axes: tuple[str, ...]


def scored_stats(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
    predecessors: Int[Array, "B T"],
    scored: Bool[Array, "B T"],
    *,
    temperature: float,
    chunk_tokens: int,
    entropy_gradient: bool = False,
    with_argmax: bool = False,
    mesh: Mesh | None = None,
) -> HeadOutputs:
    """Log-prob and entropy of every scored slot, for any loss; differentiable in `hidden` and `weight`.

    Args:
      hidden: in the compute dtype; the logits of slot t are those of hidden[b, predecessors[b, t]].
      weight: fp32 master weight, cast to the compute dtype once per call; its gradient is accumulated in fp32.
      scored: the slots that are wanted.
      chunk_tokens: tokens whose logits a device holds at a time; 0 for all slots at once.
      entropy_gradient: lets a gradient through the entropy too.
      mesh: with axes data, fsdp and tensor; without it the compiler places everything.

    Raises:
      ValueError: a dimension does not divide by the mesh axes that it is cut over.
    """
    plan = _plan(hidden, weight, temperature, chunk_tokens, mesh)
    forward = _on_mesh(mesh, partial(_stats_forward, plan), (_ROWS, _WEIGHT, _ROWS), _ROWS)
    backward_in = (_ROWS, _WEIGHT, _ROWS, _ROWS, _ROWS)
    backward = _on_mesh(mesh, partial(_stats_backward, plan), backward_in, _GRADIENTS)

    @jax.custom_vjp
    def head(hidden: Array, weight: Array, rows: _Rows) -> _Stats:
        return forward(hidden, weight, rows)

    def head_forward(hidden: Array, weight: Array, rows: _Rows) -> tuple[_Stats, Any]:
        stats = forward(hidden, weight, rows)
        return stats, (hidden, weight, rows, stats)

    def head_backward(residuals: Any, cotangents: _Stats) -> tuple[Array, Array, None]:
        d_hidden, d_weight_t = backward(*residuals, (cotangents[0], cotangents[1] if entropy_gradient else None))
        return d_hidden.astype(hidden.dtype), d_weight_t.T.astype(weight.dtype), None

    head.defvjp(head_forward, head_backward)
    logprobs, entropy, correct, _ = head(hidden, weight, _Rows(tokens, predecessors, scored))
    return HeadOutputs(logprobs, entropy, correct if with_argmax else None)


def fused_loss(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
    predecessors: Int[Array, "B T"],
    scored: Bool[Array, "B T"],
    per_slot: Any,
    token_loss: TokenLoss,
    *,
    temperature: float,
    chunk_tokens: int,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], HeadOutputs]:
    """Sum of `token_loss` over all scored slots of all devices, and the statistics, which carry no gradient.

    For losses whose term of a token depends on that token's log-prob, entropy and `per_slot` entry alone.
    Differentiable in `hidden` and `weight` only; undifferentiated, it computes no gradient. Arguments are those of
    `scored_stats`, and:

    Args:
      per_slot: pytree of [B, T, ...] arrays, handed to `token_loss` one slot at a time as [1, 1, ...] under `vmap`.
      token_loss: returns the sum over the slots that it is given, as a scalar. What it closes over is constant.

    Raises:
      ValueError: a dimension does not divide by the mesh axes that it is cut over, or `token_loss` gives no scalar.
    """
    plan = _plan(hidden, weight, temperature, chunk_tokens, mesh)
    fused, in_specs = partial(_fused, plan, token_loss), (_ROWS, _WEIGHT, _ROWS, _ROWS)
    value = _on_mesh(mesh, partial(fused, False), in_specs, (P(), _ROWS, ()))
    value_and_gradients = _on_mesh(mesh, partial(fused, True), in_specs, (P(), _ROWS, _GRADIENTS))

    @jax.custom_vjp
    def head(hidden: Array, weight: Array, rows: _Rows, per_slot: Any) -> tuple[Array, _Stats]:
        return value(hidden, weight, rows, per_slot)[:2]

    def head_forward(hidden: Array, weight: Array, rows: _Rows, per_slot: Any) -> tuple[Any, Any]:
        loss, stats, (d_hidden, d_weight_t) = value_and_gradients(hidden, weight, rows, per_slot)
        return (loss, stats), (d_hidden.astype(hidden.dtype), d_weight_t)

    def head_backward(residuals: Any, cotangents: Any) -> tuple[Array, Array, None, None]:
        d_hidden, d_weight_t = (cotangents[0] * x for x in residuals)
        return d_hidden.astype(hidden.dtype), d_weight_t.T.astype(weight.dtype), None, None

    head.defvjp(head_forward, head_backward)
    loss, stats = head(hidden, weight, _Rows(tokens, predecessors, scored), per_slot)
    return loss, HeadOutputs(*stats[:3])


def _plan(hidden: Array, weight: Array, temperature: float, chunk_tokens: int, mesh: Mesh | None) -> _Plan:
    if mesh is None:
        return _Plan(temperature, chunk_tokens, weight.shape[0], (), (), ())
    for what, size, axes in (
        ("batch rows", hidden.shape[0], ROW_AXES),
        ("vocabulary", weight.shape[0], (VOCAB_AXIS,)),
        ("model dimension", weight.shape[1], (EMBED_AXIS,)),
    ):
        pieces = math.prod(mesh.shape[axis] for axis in axes)
        if size % pieces:
            sizes = ", ".join(f"mesh.{axis} = {mesh.shape[axis]}" for axis in axes)
            raise ValueError(f"expected {what} in multiples of {pieces} ({sizes}), got {size}; change either")
    return _Plan(temperature, chunk_tokens, weight.shape[0], ROW_AXES, (EMBED_AXIS,), (VOCAB_AXIS,))


def _on_mesh(mesh: Mesh | None, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    if mesh is None:
        return function
    # The check is for automatic differentiation through shard_map, which never happens here.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _stats_forward(plan: _Plan, hidden: Array, weight: Array, rows: _Rows) -> _Stats:
    weight = _whole_rows(plan, weight, hidden.dtype)

    def step(chunk: _Chunk, stats: _Stats) -> _Stats:
        return _put_stats(stats, chunk, _chunk_stats(plan, chunk, _logits(plan, chunk, weight)))

    return _over_chunks(plan, hidden, weight, rows, step, _no_stats(rows))


def _stats_backward(
    plan: _Plan, hidden: Array, weight: Array, rows: _Rows, stats: _Stats, cotangents: tuple[Array, Array | None]
) -> _Gradients:
    weight = _whole_rows(plan, weight, hidden.dtype)

    def step(chunk: _Chunk, gradients: _Gradients) -> _Gradients:
        _, entropy, _, lse = (_take(x, chunk.slots) for x in stats)
        for_logprobs, for_entropy = jax.tree.map(lambda x: _take(x, chunk.slots), cotangents)
        logits = _logits(plan, chunk, weight)
        d_logits = _logit_gradient(plan, chunk, logits, lse, entropy, for_logprobs, for_entropy)
        return _add_gradients(chunk, weight, d_logits, gradients)

    return _summed(plan, _over_chunks(plan, hidden, weight, rows, step, _no_gradients(hidden, weight)))


def _fused(
    plan: _Plan, token_loss: TokenLoss, with_gradients: bool, hidden: Array, weight: Array, rows: _Rows, per_slot: Any
) -> tuple[Array, _Stats, _Gradients | tuple[()]]:
    weight = _whole_rows(plan, weight, hidden.dtype)

    def step(chunk: _Chunk, carry: Any) -> Any:
        loss, stats, gradients = carry
        logits = _logits(plan, chunk, weight)
        logprobs, entropy, _, lse = chunk_stats = _chunk_stats(plan, chunk, logits)
        terms_of = partial(_terms, token_loss, jax.tree.map(lambda x: _take(x, chunk.slots), per_slot))
        if with_gradients:
            terms, pullback = jax.vjp(terms_of, logprobs, entropy)
            d_logits = _logit_gradient(plan, chunk, logits, lse, entropy, *pullback(jnp.ones_like(terms)))
            gradients = _add_gradients(chunk, weight, d_logits, gradients)
        else:
            terms = terms_of(logprobs, entropy)
        loss = loss + jnp.sum(jnp.where(chunk.slots < rows.scored.size, terms, 0.0))
        return loss, _put_stats(stats, chunk, chunk_stats), gradients

    start = (jnp.zeros(()), _no_stats(rows), _no_gradients(hidden, weight) if with_gradients else ())
    loss, stats, gradients = _over_chunks(plan, hidden, weight, rows, step, start)
    return lax.psum(loss, plan.row_axes), stats, _summed(plan, gradients) if with_gradients else ()


def _terms(token_loss: TokenLoss, per_slot: Any, logprobs: Float[Array, "n"], entropy: Float[Array, "n"]) -> Array:
    """Each token's own term, so that a chunk's empty places can be left out whatever the loss says of them."""

    def one(*token: Any) -> Array:
        return token_loss(*jax.tree.map(lambda x: x[None, None], token))

    terms = jax.vmap(one)(logprobs, entropy, per_slot)
    if terms.shape != logprobs.shape:
        raise ValueError(f"expected a scalar from token_loss (the sum of its terms), got shape {terms.shape[1:]}")
    return terms


def _over_chunks(
    plan: _Plan, hidden: Array, weight: Array, rows: _Rows, step: Callable[[_Chunk, Any], Any], carry: Any
) -> Any:
    """Folds `step` over chunks of the scored slots; as many chunks as the fullest device needs, on every device."""
    total = rows.scored.size
    size = min(plan.chunk_tokens or total, total)
    order = jnp.pad(jnp.argsort(~rows.scored.reshape(-1), stable=True), (0, -total % size))
    count = jnp.sum(rows.scored, dtype=jnp.int32)
    num_chunks = (lax.pmax(count, plan.row_axes) + (size - 1)) // size

    def body(index: Array, carry: Any) -> Any:
        places = index * size + jnp.arange(size, dtype=jnp.int32)
        slots = lax.dynamic_slice_in_dim(order, index * size, size)
        chunk = _chunk(plan, hidden, rows, jnp.where(places < count, slots, total), local_vocab=weight.shape[0])
        return step(chunk, carry)

    return lax.fori_loop(0, num_chunks, body, carry)


def _chunk(plan: _Plan, hidden: Array, rows: _Rows, slots: Int[Array, "n"], *, local_vocab: int) -> _Chunk:
    total, length = rows.scored.size, rows.scored.shape[1]
    predecessors, tokens = _take(rows.predecessors, slots), _take(rows.tokens, slots)
    has_source = (slots < total) & (predecessors >= 0) & (predecessors < length)
    sources = jnp.where(has_source, slots // length * length + predecessors, total)
    known = has_source & (tokens >= 0) & (tokens < plan.vocab_size)
    offset = lax.axis_index(plan.vocab_axes) * local_vocab if plan.vocab_axes else 0
    targets = jnp.where(known, tokens - offset, -1)
    return _Chunk(slots, sources, targets, has_source, known, _take(hidden, sources))


def _logits(plan: _Plan, chunk: _Chunk, weight: Float[Array, "v D"]) -> Float[Array, "n v"]:
    return _matmul(chunk.hidden, weight, 1, 1) * (1.0 / plan.temperature)


def _chunk_stats(plan: _Plan, chunk: _Chunk, logits: Float[Array, "n v"]) -> _Stats:
    peak = lax.pmax(jnp.max(logits, axis=1), plan.vocab_axes)
    shifted = logits - peak[:, None]
    exponentials = jnp.exp(shifted)
    here = (chunk.targets >= 0) & (chunk.targets < logits.shape[1])
    chosen = jnp.take_along_axis(shifted, jnp.where(here, chunk.targets, 0)[:, None], axis=1)[:, 0]
    total, weighted, chosen = lax.psum(
        (jnp.sum(exponentials, axis=1), jnp.sum(exponentials * shifted, axis=1), jnp.where(here, chosen, 0.0)),
        plan.vocab_axes,
    )
    log_total = jnp.log(total)
    # H = log Z - E[logit], both relative to the peak, so that nothing cancels where the entropy is small.
    entropy = log_total - weighted / total
    entropy = jnp.where(chunk.has_source, entropy, jnp.nan)
    logprobs = jnp.where(chunk.known, chosen - log_total, jnp.nan)
    return logprobs, entropy, chunk.known & (chosen == 0), peak + log_total


def _logit_gradient(
    plan: _Plan, chunk: _Chunk, logits: Array, lse: Array, entropy: Array, for_logprobs: Array, for_entropy: Any
) -> Float[Array, "n v"]:
    """d log p_y / d logit = onehot(y) - p and d H / d logit = -p (log p + H), over the temperature; compute dtype.

    Tokens that have no number, and a chunk's empty places, get 0 even where NaN is asked for.
    """
    for_logprobs = jnp.where(chunk.known, for_logprobs / plan.temperature, 0.0)
    p = jnp.exp(logits - lse[:, None])
    shared = -for_logprobs[:, None]
    if for_entropy is not None:
        for_entropy = jnp.where(chunk.has_source, for_entropy / plan.temperature, 0.0)
        entropy = jnp.where(chunk.has_source, entropy, 0.0)
        shared = shared - for_entropy[:, None] * (logits - (lse - entropy)[:, None])
    # A mask joins the pass over p; a scatter would be another.
    vocabulary = lax.broadcasted_iota(chunk.targets.dtype, logits.shape, 1)
    chosen = jnp.where(vocabulary == chunk.targets[:, None], for_logprobs[:, None], 0.0)
    return (p * shared + chosen).astype(chunk.hidden.dtype)


def _add_gradients(chunk: _Chunk, weight: Array, d_logits: Array, gradients: _Gradients) -> _Gradients:
    d_hidden, d_weight_t = gradients
    rows = d_hidden.reshape(-1, d_hidden.shape[2])
    # Sources repeat where answers share a prompt. The weight's gradient is kept transposed: [D, n] x [n, v] is a plain
    # product, where [v, n] x [n, D] makes the CPU copy the chunk's largest array into another order.
    rows = rows.at[chunk.sources].add(_matmul(d_logits, weight, 1, 0), mode="drop")
    return rows.reshape(d_hidden.shape), d_weight_t + _matmul(chunk.hidden, d_logits, 0, 0)


def _put_stats(stats: _Stats, chunk: _Chunk, values: _Stats) -> _Stats:
    pairs = zip(stats, values, strict=True)
    return tuple(x.reshape(-1).at[chunk.slots].set(y, mode="drop").reshape(x.shape) for x, y in pairs)


def _no_stats(rows: _Rows) -> _Stats:
    return tuple(jnp.zeros(rows.scored.shape, dtype) for dtype in (jnp.float32, jnp.float32, bool, jnp.float32))


def _no_gradients(hidden: Array, weight: Array) -> _Gradients:
    return jnp.zeros(hidden.shape), jnp.zeros(weight.shape[::-1])


def _summed(plan: _Plan, gradients: _Gradients) -> _Gradients:
    """Over devices: hidden's from all parts of the vocabulary, the weight's from all rows, and cut as the weight is."""
    d_hidden, d_weight_t = gradients
    d_hidden = lax.psum(d_hidden, plan.vocab_axes)
    if plan.embed_axes:
        d_weight_t = lax.psum_scatter(d_weight_t, plan.embed_axes, scatter_dimension=0, tiled=True)
        d_weight_t = lax.psum(d_weight_t, tuple(axis for axis in plan.row_axes if axis not in plan.embed_axes))
    return d_hidden, d_weight_t


def _whole_rows(plan: _Plan, weight: Array, dtype: Any) -> Array:
    """This device's part of the vocabulary with all of the model dimension, in the compute dtype."""
    weight = weight.astype(dtype)
    return lax.all_gather(weight, plan.embed_axes, axis=1, tiled=True) if plan.embed_axes else weight


def _take(x: Array, slots: Int[Array, "n"]) -> Array:
    """Entries of x [B, T, ...] by flat slot; 0 beyond the last."""
    return x.reshape(-1, *x.shape[2:]).at[slots].get(mode="fill", fill_value=0)


def _matmul(x: Array, y: Array, x_dim: int, y_dim: int) -> Array:
    """Product over one dimension of each, accumulated in fp32; fp32 means fp32, where accelerators would take TF32."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    dims = (((x_dim,), (y_dim,)), ((), ()))
    return lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)
