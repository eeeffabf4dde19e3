"""One dense decoder in Flax NNX, wired from a nested dict of fp32 parameters: each bias and norm that its family has.

The parameter tree's paths are the `path` column of `contracts.parameters`; weights keep the [out, in] layout and the
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
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from learner_jax.contracts import ModelConfig, ModelFamilyError
from learner_jax.models.attention import Implementation, attend, attention_implementation
from learner_jax.models.blockwise_attention import RESIDUALS as ATTENTION_RESIDUALS
from learner_jax.models.head import scored_stats
from learner_jax.models.layers import Layer, RMSNorm, Rows, rope_inverse_frequencies
from learner_jax.models.layout import plain_layout
from learner_jax.models.parameters import Params, abstract_parameters
from learner_jax.runtime import load_object

ComputeDtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "matmuls", "full"]

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
      DoorError, ModelFamilyError: the family's decoder is not there, or is none.
    """
    expected = flatten_dict(abstract_parameters(config), sep=".")
    given = flatten_dict(params, sep=".")
    if expected.keys() != given.keys():
        missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
        raise ValueError(f"parameter tree does not fit the model config: missing {missing}, unknown {unknown}")
    for path, leaf in given.items():
        if leaf.shape != expected[path].shape:
            raise ValueError(f"parameter {path} has shape {leaf.shape}, expected {expected[path].shape}")
    return decoder_class(config)(
        config,
        params,
        compute_dtype=compute_dtype,
        remat=remat,
        attention=attention,
        max_segments=max_segments,
        activation_sharding=activation_sharding,
    )


def decoder_class(config: ModelConfig) -> type[Decoder]:
    """The class that computes a family's models.

    Raises:
      DoorError, ModelFamilyError: `ModelFamily.decoder` names nothing, or no subclass of `Decoder`.
    """
    name = config.family.decoder
    if not name:
        return Decoder
    found = load_object(name, setting=f"decoder of model family {config.family.name!r},")
    if not (isinstance(found, type) and issubclass(found, Decoder)):
        raise ModelFamilyError(
            f"model family {config.family.name!r}: decoder {name!r} is {type(found).__name__}, expected a subclass of "
            f"learner_jax.models.Decoder"
        )
    return found


class Table(nnx.Module):
    """One [V, D] matrix: the embedding, or an output head of its own."""

    def __init__(self, params: Params) -> None:
        self.weight = nnx.Param(params["weight"])


class Decoder(nnx.Module):
    """The model; build it with `merge`, which checks the parameters first. A subclass may name another `layer_type`.

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

    layer_type: type[Layer] = Layer

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
        self.layers = self.layer_type(config, params["layers"], kernel)
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
        rows = Rows(jnp.cos(angle), jnp.sin(angle), segments, prefixes)
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
