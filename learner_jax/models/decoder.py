"""One dense decoder in Flax NNX for Llama 3, Qwen2.5 and Qwen3, wired from a nested dict of fp32 parameters.

The parameter tree's paths are the `path` column of `hf_names.parameters`; weights keep the [out, in] layout and the
repeated layers are stacked on a leading axis and run by one scan. Master weights are fp32 and are cast where they
are used; norms, rope tables, softmax and log-softmax are fp32 whatever the compute dtype is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from learner_jax.contracts import ModelConfig, parameters
from learner_jax.models.attention import RESIDUALS as ATTENTION_RESIDUALS
from learner_jax.models.attention import Implementation, attend, attention_implementation
from learner_jax.models.head import scored_stats
from learner_jax.models.layout import plain_layout

ComputeDtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "matmuls", "full"]

#: Nested dict of arrays keyed by the parts of `Parameter.path`.
Params = dict[str, Any]

_INIT_STDDEV = 0.02
_COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
#: What each policy keeps of a layer for the backward pass; None keeps everything.
_REMAT: Mapping[str, Callable[..., bool] | None] = {
    "none": None,
    "matmuls": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ATTENTION_RESIDUALS),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenStats:
    """What the model says of each token of a row, given the tokens before it. Entry 0 has no context.

    Attributes:
      logprobs: fp32[B, T], nats; entry t is log p(tokens[t] | tokens[:t]) at logits / temperature; entry 0 is 0.
      entropy: fp32[B, T], nats, of the distribution that tokens[t] was scored by; entry 0 is 0.
      argmax_correct: bool[B, T], whether tokens[t] is that distribution's mode, where that was asked for.
      values_after: fp32[B, T], value of the state after tokens[:t+1], where the model has a value function.
    """

    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    argmax_correct: Bool[Array, "B T"] | None = None
    values_after: Float[Array, "B T"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Rows:
    """What attention needs to know of the rows besides their activations; `segments` None: one sequence a row."""

    cos: Float[Array, "b T 1 h"]
    sin: Float[Array, "b T 1 h"]
    segments: Int[Array, "B T"] | None
    prefixes: Int[Array, "B T"] | None


def abstract_parameters(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameter tree, nothing allocated."""
    flat = {}
    for row in parameters(config):
        shape = (config.num_layers, *row.shape) if row.stacked else row.shape
        flat[row.path] = jax.ShapeDtypeStruct(shape, jnp.float32)
    tree: Params = unflatten_dict(flat, sep=".")
    return tree


def init_parameters(config: ModelConfig, key: Array) -> Params:
    """Fresh fp32 parameters: matrices normal(0, 0.02), norms one, biases zero.

    A pure function of `config` and `key`, so `jax.jit(..., static_argnums=0, out_shardings=...)` makes each device
    draw its own part.
    """
    shapes = flatten_dict(abstract_parameters(config), sep=".")
    flat: dict[str, Array] = {}
    for index, row in enumerate(parameters(config)):
        shape = shapes[row.path].shape
        if row.path.endswith(".bias"):
            flat[row.path] = jnp.zeros(shape, jnp.float32)
        elif len(row.shape) == 1:
            flat[row.path] = jnp.ones(shape, jnp.float32)
        else:
            flat[row.path] = _INIT_STDDEV * jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
    tree: Params = unflatten_dict(flat, sep=".")
    return tree


def merge(
    config: ModelConfig,
    params: Params,
    *,
    compute_dtype: ComputeDtype = "float32",
    remat: Remat = "none",
    attention: Implementation | None = None,
    max_segments: int | None = None,
    activation_sharding: jax.sharding.NamedSharding | None = None,
) -> Decoder:
    """Wires a parameter tree into a `Decoder`, after checking it against the table; moves no data, so cheap in `jit`.

    Raises:
      ValueError: a path is missing or unknown, or a shape differs from the table's.
    """
    expected = flatten_dict(abstract_parameters(config), sep=".")
    given = flatten_dict(params, sep=".")
    if expected.keys() != given.keys():
        missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
        raise ValueError(f"parameter tree does not fit the model config: missing {missing}, unknown {unknown}")
    for path, leaf in given.items():
        if leaf.shape != expected[path].shape:
            raise ValueError(f"parameter {path} has shape {leaf.shape}, expected {expected[path].shape}")
    return Decoder(
        config,
        params,
        compute_dtype=compute_dtype,
        remat=remat,
        attention=attention,
        max_segments=max_segments,
        activation_sharding=activation_sharding,
    )


def rope_inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """fp32[H/2] radians per position (RoFormer, arXiv 2104.09864), with Llama 3's scaling where the config asks.

    Wavelengths longer than the original context are stretched by `factor`, short ones are kept, and those between
    are interpolated (arXiv 2407.21783, section 3.2; the formula is that of Meta's released code).
    """
    frequency = config.rope_theta ** -(np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_max_position_embeddings * frequency / (2 * np.pi)
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        frequency = kept * frequency + (1 - kept) * frequency / scaling.factor
    return frequency.astype(np.float32)


def _rotate(x: Float[Array, "B T N H"], cos: Float[Array, "b T 1 h"], sin: Float[Array, "b T 1 h"]) -> Array:
    """Rotates the pairs (x[i], x[i + H/2]), Hugging Face's order of a head's dimensions, in fp32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


@jax.custom_vjp
def _linear(x: Float[Array, "B T i"], weight: Float[Array, "o i"]) -> Float[Array, "B T o"]:
    """x @ weight.T in the dtype of x; the weight's gradient is accumulated in fp32 and has the weight's dtype."""
    return jnp.einsum("bti,oi->bto", x, weight.astype(x.dtype))


def _linear_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    # Not by `_linear` itself, inside which a remat policy would see no matmul to keep.
    return jnp.einsum("bti,oi->bto", x, weight.astype(x.dtype)), (x, weight)


def _linear_backward(residuals: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, weight = residuals
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    d_x = jnp.einsum("bto,oi->bti", d_out, weight.astype(x.dtype), precision=precision)
    # A product over tokens makes the CPU copy its first operand into another order: the smaller one should be first.
    product = partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    x, d_out = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
    wide = weight.shape[0] > weight.shape[1]
    d_weight = product("ni,no->io", x, d_out).T if wide else product("no,ni->oi", d_out, x)
    return d_x, d_weight.astype(weight.dtype)


_linear.defvjp(_linear_forward, _linear_backward)


class Linear(nnx.Module):
    """x @ weight.T + bias in the dtype of x."""

    def __init__(self, params: Params) -> None:
        self.weight = nnx.Param(params["weight"])
        self.bias = nnx.Param(params["bias"]) if "bias" in params else None

    def __call__(self, x: Float[Array, "B T i"]) -> Float[Array, "B T o"]:
        y: Array = _linear(x, self.weight[...])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root mean square normalization of the last dimension (arXiv 1910.07467), in fp32."""

    def __init__(self, config: ModelConfig, params: Params) -> None:
        self.eps = config.rms_norm_eps
        self.weight = nnx.Param(params["weight"])

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * scale * self.weight[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Causal grouped-query attention with rope, within the segments of each row."""

    def __init__(self, config: ModelConfig, params: Params, attend: Callable[..., Array]) -> None:
        self.head_dim, self.attend = config.head_dim, attend
        self.q_proj, self.k_proj = Linear(params["q_proj"]), Linear(params["k_proj"])
        self.v_proj, self.o_proj = Linear(params["v_proj"]), Linear(params["o_proj"])
        self.q_norm = RMSNorm(config, params["q_norm"]) if config.qk_norm else None
        self.k_norm = RMSNorm(config, params["k_norm"]) if config.qk_norm else None

    def __call__(self, x: Float[Array, "B T D"], rows: _Rows) -> Float[Array, "B T D"]:
        batch, length, _ = x.shape
        query = self.q_proj(x).reshape(batch, length, -1, self.head_dim)
        key = self.k_proj(x).reshape(batch, length, -1, self.head_dim)
        value = self.v_proj(x).reshape(batch, length, -1, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = _rotate(query, rows.cos, rows.sin), _rotate(key, rows.cos, rows.sin)
        mixed = self.attend(query, key, value, segments=rows.segments, prefixes=rows.prefixes)
        return self.o_proj(mixed.reshape(batch, length, -1))


class MLP(nnx.Module):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    def __init__(self, params: Params) -> None:
        self.gate_proj, self.up_proj = Linear(params["gate_proj"]), Linear(params["up_proj"])
        self.down_proj = Linear(params["down_proj"])

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """One pre-norm residual layer."""

    def __init__(self, config: ModelConfig, params: Params, attend: Callable[..., Array]) -> None:
        self.input_norm = RMSNorm(config, params["input_norm"])
        self.attention = Attention(config, params["attention"], attend)
        self.post_norm = RMSNorm(config, params["post_norm"])
        self.mlp = MLP(params["mlp"])

    def __call__(self, x: Float[Array, "B T D"], rows: _Rows) -> Float[Array, "B T D"]:
        x = x + self.attention(self.input_norm(x), rows)
        return x + self.mlp(self.post_norm(x))


class Table(nnx.Module):
    """One [V, D] matrix: the embedding, or an output head of its own."""

    def __init__(self, params: Params) -> None:
        self.weight = nnx.Param(params["weight"])


class Decoder(nnx.Module):
    """The model; build it with `merge`, which checks the parameters first.

    Args:
      config: shape and options.
      params: nested dict of fp32 arrays as of `abstract_parameters`, layers stacked.
      compute_dtype: dtype of activations and of the weights where they are used.
      remat: what is kept of each layer for the backward pass; the rest is computed again.
      attention: kernel; the platform's by default.
      max_segments: most segments that a row may hold, for kernels that must know.
      activation_sharding: how activations [B, T, D] lie on the mesh, `sharding.batch_sharding(mesh)`. Without it the
        compiler may spread the embedding's output like the table instead of by batch.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        *,
        compute_dtype: ComputeDtype = "float32",
        remat: Remat = "none",
        attention: Implementation | None = None,
        max_segments: int | None = None,
        activation_sharding: jax.sharding.NamedSharding | None = None,
    ) -> None:
        implementation = attention or attention_implementation(jax.default_backend(), compute_dtype)
        mesh: Any = None if activation_sharding is None else activation_sharding.mesh
        kernel = partial(attend, implementation=implementation, mesh=mesh, max_segments=max_segments)
        self.config, self.compute_dtype, self.remat = config, compute_dtype, remat
        self.activation_sharding = activation_sharding
        self.embed = Table(params["embed"])
        self.layers = Layer(config, params["layers"], kernel)
        self.norm = RMSNorm(config, params["norm"])
        self.lm_head = None if config.tie_word_embeddings else Table(params["lm_head"])

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        prefixes: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Activations after the final norm, in the compute dtype.

        `positions` default to 0..T-1 in every row; `segments` and `prefixes` are those of a `Layout`, and without them
        a row is one sequence. A token id outside the vocabulary makes what sees it NaN; it never takes a neighbour's
        embedding.
        """
        if positions is None:
            positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        angle = positions[..., None, None].astype(jnp.float32) * rope_inverse_frequencies(self.config)
        rows = _Rows(jnp.cos(angle), jnp.sin(angle), segments, prefixes)
        graph, stacked = nnx.split(self.layers)

        def step(x: Array, layer: Any) -> tuple[Array, None]:
            return self._constrain(nnx.merge(graph, layer)(x, rows)), None

        with self.matmul_precision():
            x = self._embedded(tokens).astype(_COMPUTE_DTYPES[self.compute_dtype])
            policy = _REMAT[self.remat]
            # The scan already keeps the backward pass apart from the forward one, so CSE can't undo the remat.
            body = step if policy is None else jax.checkpoint(step, prevent_cse=False, policy=policy)
            x, _ = jax.lax.scan(body, x, stacked)
        return self.norm(x)

    @property
    def head_weight(self) -> Float[Array, "V D"]:
        """The output head's fp32 master weight; the embedding's where they are tied."""
        weight: Array = (self.embed if self.lm_head is None else self.lm_head).weight[...]
        return weight

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """fp32 scores of the next token, from compute-dtype operands accumulated in fp32."""
        weight = self.head_weight.astype(hidden.dtype)
        with self.matmul_precision():
            return jnp.einsum("btd,vd->btv", hidden, weight, preferred_element_type=jnp.float32)

    def matmul_precision(self) -> contextlib.AbstractContextManager[Any]:
        """fp32 means fp32: accelerators would otherwise multiply in TF32 or bf16."""
        precision = "highest" if self.compute_dtype == "float32" else "default"
        manager: contextlib.AbstractContextManager[Any] = jax.default_matmul_precision(precision)
        return manager

    def _embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Rows of the embedding, fp32.

        On a mesh they first lie as the table does, cut by columns over fsdp, and then by rows: said in two steps, since
        the compiler would not find the exchange between them and hold all rows on every device.
        """
        rows = jnp.take(self.embed.weight[...], tokens, axis=0, mode="fill")
        if self.activation_sharding is None:
            return rows
        columns = jax.sharding.NamedSharding(self.activation_sharding.mesh, PartitionSpec("data", None, "fsdp"))
        return self._constrain(jax.lax.with_sharding_constraint(rows, columns))

    def _constrain(self, x: Array) -> Array:
        if self.activation_sharding is None:
            return x
        constrained: Array = jax.lax.with_sharding_constraint(x, self.activation_sharding)
        return constrained


def token_logprobs(
    model: Decoder,
    tokens: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 0,
    entropy_gradient: bool = False,
) -> TokenStats:
    """Log-probs, entropies and argmax hits of every token of right-padded rows, one sequence a row.

    Entropy lets a gradient through only with `entropy_gradient`. With `chunk_tokens` > 0 the output head runs on that
    many tokens at a time, so that no [B, T, V] array exists; numbers and gradients are the same.
    """
    tokens, layout = jnp.asarray(tokens), plain_layout(*tokens.shape)
    out = scored_stats(
        model.hidden_states(tokens),
        model.head_weight,
        tokens,
        jnp.asarray(layout.predecessors),
        jnp.asarray(layout.predecessors) >= 0,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        entropy_gradient=entropy_gradient,
        with_argmax=True,
    )
    return TokenStats(logprobs=out.logprobs, entropy=out.entropy, argmax_correct=out.argmax_correct)
