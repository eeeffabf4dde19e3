"""The parameter tree of a model: shapes from its family's rows, and fresh values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from learner_jax.contracts import ModelConfig, parameters

#: Nested dict of arrays keyed by the parts of `Parameter.path`.
Params = dict[str, Any]

_INIT_STDDEV = 0.02


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
