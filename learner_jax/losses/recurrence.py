"""Backward linear recurrences, one step after another or in O(log T) depth."""

from __future__ import annotations

import sys
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Method = Literal["auto", "sequential", "associative"]

#: Shortest sequence for which the associative form is taken, per platform; `tools.bench losses` measures it. On a CPU
#: the sequential scan was the faster one at every length; the others are not measured: there depth counts, not work.
ASSOCIATIVE_FROM = {"cpu": sys.maxsize, "gpu": 1, "tpu": 1}


def chosen_method(length: int, method: str) -> Literal["sequential", "associative"]:
    """The method for a sequence of this length: "auto" is what `ASSOCIATIVE_FROM` names for the platform.

    Raises:
      ValueError: unknown method.
    """
    match method:
        case "auto":
            shortest = ASSOCIATIVE_FROM.get(jax.default_backend(), 1)
            return "associative" if length >= shortest else "sequential"
        case "sequential" | "associative":
            return method
        case _:
            raise ValueError(f"unknown method {method!r}; known: auto, sequential, associative")


def reverse_linear_recurrence(
    inputs: Float[Array, "T"], decays: Float[Array, "T"], *, method: str = "auto"
) -> Float[Array, "T"]:
    """x_t = inputs_t + decays_t * x_{t+1}, with x_T = 0, for t = T-1 ... 0.

    "sequential" is a scan of T steps. "associative" composes the affine maps x -> inputs_t + decays_t * x pairwise
    (Blelloch, "Prefix Sums and Their Applications", 1990, section 1.4): O(T) work in O(log T) depth. Both give the
    same numbers up to rounding. "auto" takes the one that `ASSOCIATIVE_FROM` names for the length and platform.

    Raises:
      ValueError: unknown method.
    """
    match chosen_method(inputs.shape[0], method):
        case "sequential":

            def step(following: Array, at_t: tuple[Array, Array]) -> tuple[Array, Array]:
                input_t, decay_t = at_t
                current = input_t + decay_t * following
                return current, current

            return jax.lax.scan(step, jnp.zeros((), inputs.dtype), (inputs, decays), reverse=True)[1]
        case "associative":

            def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
                offset_later, factor_later = later
                offset, factor = earlier
                return offset + factor * offset_later, factor * factor_later

            return jax.lax.associative_scan(compose, (inputs, decays), reverse=True)[0]
