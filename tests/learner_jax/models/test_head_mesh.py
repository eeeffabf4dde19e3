"""The fused head on every small mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from learner_jax.models.head import fused_loss, scored_stats
from tests.support.heads import (
    QUICK_COMPILE,
    Case,
    by_scored_stats,
    make_case,
    mesh_of,
    policy_inputs,
    policy_loss,
)

FACTORISATIONS = [
    (data, fsdp, count // (data * fsdp))
    for count in (4, 8)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if count % (data * fsdp) == 0
]


def both_on(mesh: Mesh | None, case: Case, per_slot: Any) -> Any:
    """Both functions' loss and gradients, and the fused loss alone, from inputs placed as the learner has them."""
    hidden, weight, *rest = case.head
    if mesh is not None:
        rows, table = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P("tensor", "fsdp"))
        hidden, rest, per_slot = jax.device_put((hidden, rest, per_slot), rows)
        weight = jax.device_put(weight, table)

    def run(hidden: Any, weight: Any, rest: Any, per_slot: Any, coefficient: Any) -> Any:
        def loss(function: Any, hidden: Any, weight: Any) -> Any:
            # The loss closes over a traced value, as it does over the step's KL coefficient.
            def scaled(*args: Any) -> jax.Array:
                return coefficient * policy_loss(*args)

            options: Any = dict(temperature=0.9, chunk_tokens=3, mesh=mesh)
            return function(hidden, weight, *rest, per_slot, scaled, **options)

        both = [
            jax.value_and_grad(functools.partial(loss, function), argnums=(0, 1), has_aux=True)(hidden, weight)
            for function in (fused_loss, by_scored_stats)
        ]
        return [*both, loss(fused_loss, hidden, weight)]

    return jax.jit(run, compiler_options=QUICK_COMPILE)(hidden, weight, rest, per_slot, jnp.float32(1.5))


@functools.cache
def mesh_case() -> tuple[Case, Any, Any]:
    case = make_case(batch=8, length=6, width=8, vocab=16)
    per_slot = policy_inputs(case)
    return case, per_slot, both_on(None, case, per_slot)


#: of every kind: one axis, two, all three; the others are in the soak
IN_SUITE = {(1, 1, 4), (4, 1, 1), (1, 8, 1), (2, 1, 2), (1, 2, 4), (2, 4, 1), (2, 2, 2)}


@pytest.mark.parametrize(
    "sizes", [pytest.param(sizes, marks=() if sizes in IN_SUITE else pytest.mark.soak) for sizes in FACTORISATIONS]
)
def test_every_mesh_gives_one_devices_numbers(sizes: tuple[int, int, int]) -> None:
    case, per_slot, expected = mesh_case()
    mesh = mesh_of(*sizes)
    got = both_on(mesh, case, per_slot)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        largest = float(jnp.abs(theirs).max())
        assert largest > 0.01
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * largest)
    d_hidden, d_weight = got[0][1]
    assert d_weight.sharding.is_equivalent_to(NamedSharding(mesh, P("tensor", "fsdp")), 2)
    assert d_hidden.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"))), 3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"batch": 6}, r"batch rows in multiples of 4 \(mesh.data = 2, mesh.fsdp = 2\), got 6"),
        ({"vocab": 11}, r"vocabulary in multiples of 2 \(mesh.tensor = 2\), got 11"),
        ({"width": 5}, r"model dimension in multiples of 2 \(mesh.fsdp = 2\), got 5"),
    ],
)
def test_what_does_not_fit_the_mesh_is_refused(shape: dict[str, int], message: str) -> None:
    case = make_case(**({"batch": 4, "vocab": 12, "width": 6} | shape))
    with pytest.raises(ValueError, match=message):
        scored_stats(*case.head, temperature=1.0, chunk_tokens=0, mesh=mesh_of(2, 2, 2))
