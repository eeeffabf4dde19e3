"""Linear recurrences are their definition, by every method."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.losses import recurrence
from learner_jax.losses.recurrence import reverse_linear_recurrence
from tests.support.episodes import (
    METHODS,
    recurrence_oracle,
)
from tests.support.finite_differences import gradient


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 7, 256, 4096])
def test_recurrence_is_its_definition(method: recurrence.Method, length: int) -> None:
    rng = np.random.default_rng(length)
    inputs, decays = rng.normal(size=length).astype(np.float32), rng.random(length).astype(np.float32)
    got = jax.jit(partial(reverse_linear_recurrence, method=method))(jnp.array(inputs), jnp.array(decays))
    exact = recurrence_oracle(inputs.astype(np.float64), decays.astype(np.float64))
    # Sums that cancel keep the rounding of their terms, so the error is measured against the terms' magnitude.
    scale = recurrence_oracle(np.abs(inputs).astype(np.float64), decays.astype(np.float64))
    assert np.max(np.abs(np.asarray(got) - exact) / scale) < 1e-6


@pytest.mark.parametrize("length", [1, 7, 256, 4096])
def test_associative_equals_sequential_under_vmap_and_jit(length: int) -> None:
    rng = np.random.default_rng(length)
    # Positive terms don't cancel, so that a relative bound holds for every entry. The decays reach 1, and in half of
    # the rows some are 0.
    inputs = jnp.array(rng.random((4, length)), jnp.float32)
    decays = np.minimum(rng.uniform(0.9, 1.05, (4, length)), 1.0)
    decays[2:] = np.where(rng.random((2, length)) < 0.2, 0.0, decays[2:])
    sequential, associative = (
        jax.jit(jax.vmap(partial(reverse_linear_recurrence, method=method)))(inputs, jnp.array(decays, jnp.float32))
        for method in METHODS
    )
    np.testing.assert_allclose(associative, sequential, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_passes_a_decay_of_zero(method: recurrence.Method) -> None:
    inputs, decays = jnp.arange(1.0, 10.0), jnp.full(9, 0.9).at[4].set(0.0)
    function = jax.jit(partial(reverse_linear_recurrence, method=method))
    got, other = function(inputs, decays), function(inputs.at[5:].set(-1e30), decays)
    np.testing.assert_array_equal(got[:5], other[:5])
    assert got[4] == 5


@pytest.mark.parametrize("method", METHODS)
def test_recurrence_gradients_by_finite_differences(method: recurrence.Method) -> None:
    rng = np.random.default_rng(0)
    inputs, decays, readout = rng.normal(size=9), rng.random(9), rng.normal(size=9)
    decays[3] = 0.0  # where a product of all decays has no inverse

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def function(x: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.sum(jnp.array(readout) * reverse_linear_recurrence(x, d, method=method))

    got = function(jnp.array(inputs), jnp.array(decays))
    expected = (
        gradient(lambda x: readout @ recurrence_oracle(x, decays), inputs),
        gradient(lambda d: readout @ recurrence_oracle(inputs, d), decays),
    )
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "loops"), [(7, True), (8, False)])
def test_auto_takes_what_the_table_says(monkeypatch: pytest.MonkeyPatch, length: int, loops: bool) -> None:
    monkeypatch.setitem(recurrence.ASSOCIATIVE_FROM, jax.default_backend(), 8)
    jaxpr = jax.make_jaxpr(reverse_linear_recurrence)(jnp.ones(length), jnp.ones(length))
    assert ("scan" in {equation.primitive.name for equation in jaxpr.eqns}) is loops


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'parallel'; known: auto, sequential, associative"):
        reverse_linear_recurrence(jnp.ones(3), jnp.ones(3), method="parallel")  # type: ignore[arg-type]
