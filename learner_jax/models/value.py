"""A value function beside the policy: a head on the policy's trunk, or a critic with a trunk of its own.

Its parameters stand under the key "value" of the parameter tree. They are trained, sharded and checkpointed with the
rest, and never published: the fleet serves the policy alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from learner_jax.contracts import ModelConfig
from learner_jax.models.parameters import Params, abstract_parameters

ValueKind = Literal["none", "shared", "separate"]
KEY = "value"


def split_parameters(params: Params) -> tuple[Params, Params | None]:
    """(the policy's parameters, the value function's or None)."""
    return {name: leaf for name, leaf in params.items() if name != KEY}, params.get(KEY)


def trunk_config(config: ModelConfig) -> ModelConfig:
    """The policy's shape without an output head of its own."""
    return dataclasses.replace(config, tie_word_embeddings=True)


def abstract_value_parameters(config: ModelConfig, kind: ValueKind) -> Params:
    """Shapes and dtypes of the value function's parameters; empty for "none"."""
    if kind == "none":
        return {}
    value: Params = {
        "head": {
            "weight": jax.ShapeDtypeStruct((config.hidden_size,), jnp.float32),
            "bias": jax.ShapeDtypeStruct((), jnp.float32),
        }
    }
    if kind == "separate":
        value["trunk"] = abstract_parameters(trunk_config(config))
    return {KEY: value}


def with_value_parameters(params: Params, config: ModelConfig, kind: ValueKind) -> Params:
    """Adds a value function that says 0 everywhere: a zero head; a separate trunk begins as a copy of the policy's.

    Parameters that hold one already keep it. The copy shares the policy's arrays: copy them before donating.
    """
    if kind == "none" or KEY in params:
        return params
    value: dict[str, Any] = {
        "head": {"weight": jnp.zeros((config.hidden_size,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}
    }
    if kind == "separate":
        value["trunk"] = {name: params[name] for name in abstract_parameters(trunk_config(config))}
    return {**params, KEY: value}


def head_values(head: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
    """Value of the state after each token, fp32, from the activations after the final norm."""
    weight = head["weight"].astype(jnp.float32)
    return jnp.einsum("btd,d->bt", hidden.astype(jnp.float32), weight, precision="highest") + head["bias"]
