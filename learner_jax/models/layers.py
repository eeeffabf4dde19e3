"""The decoder's blocks in Flax NNX: rope, linear maps, norms, attention, feed-forward, and a layer of them.

Weights keep the [out, in] layout. Norms, rope tables and softmax are fp32 whatever the compute dtype is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from learner_jax.contracts import ModelConfig
from learner_jax.models.parameters import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What attention needs to know of the rows besides their activations; `segments` None: one sequence a row."""

    cos: Float[Array, "b T 1 h"]
    sin: Float[Array, "b T 1 h"]
    segments: Int[Array, "B T"] | None
    prefixes: Int[Array, "B T"] | None


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
        self.q_norm = RMSNorm(config, params["q_norm"]) if "q_norm" in params else None
        self.k_norm = RMSNorm(config, params["k_norm"]) if "k_norm" in params else None

    def __call__(self, x: Float[Array, "B T D"], rows: Rows) -> Float[Array, "B T D"]:
        batch, length, _ = x.shape
        query = self.q_proj(x).reshape(batch, length, -1, self.head_dim)
        key = self.k_proj(x).reshape(batch, length, -1, self.head_dim)
        value = self.v_proj(x).reshape(batch, length, -1, self.head_dim)
        query = query if self.q_norm is None else self.q_norm(query)
        key = key if self.k_norm is None else self.k_norm(key)
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
    """One pre-norm residual layer. A subclass may name other blocks: `attention_type`, `mlp_type`."""

    attention_type: type[Attention] = Attention
    mlp_type: type[MLP] = MLP

    def __init__(self, config: ModelConfig, params: Params, attend: Callable[..., Array]) -> None:
        self.input_norm = RMSNorm(config, params["input_norm"])
        self.attention = self.attention_type(config, params["attention"], attend)
        self.post_norm = RMSNorm(config, params["post_norm"])
        self.mlp = self.mlp_type(params["mlp"])

    def __call__(self, x: Float[Array, "B T D"], rows: Rows) -> Float[Array, "B T D"]:
        x = x + self.attention(self.input_norm(x), rows)
        return x + self.mlp(self.post_norm(x))
