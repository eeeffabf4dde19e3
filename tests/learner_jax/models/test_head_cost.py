"""What the fused head costs: matmuls, slots that are not scored, and memory."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from learner_jax.models.head import fused_loss
from tests.support.heads import (
    BOTH,
    CHUNK,
    by_scored_stats,
    linear,
    make_case,
    plain_head,
)


def test_matmuls_are_one_three_and_four_and_accumulate_in_fp32() -> None:
    case = make_case()
    hidden, weight, *rest = case.head

    def count(function: Any, differentiate: bool) -> int:
        def loss(hidden: Any, weight: Any) -> Any:
            return function(hidden, weight, *rest, case.per_slot, linear, temperature=1.0, chunk_tokens=CHUNK)[0]

        traced = jax.grad(loss, argnums=(0, 1)) if differentiate else loss
        program = str(jax.make_jaxpr(traced)(hidden.astype(jnp.bfloat16), weight))
        matmuls = program.count("dot_general[")
        assert program.count("preferred_element_type=float32") == matmuls
        return matmuls

    assert [count(fused_loss, False), count(fused_loss, True)] == [1, 3]
    assert [count(by_scored_stats, False), count(by_scored_stats, True)] == [1, 4]


def test_unscored_slots_cost_nothing_and_another_mask_no_compilation() -> None:
    case, calls = make_case(length=20), []
    hidden, weight, tokens, predecessors, scored = case.head

    def counted(logprobs: jax.Array, entropy: jax.Array, per_slot: Any) -> jax.Array:
        jax.debug.callback(lambda: calls.append(1))
        return linear(logprobs, entropy, per_slot)

    @jax.jit
    def run(scored: jax.Array) -> jax.Array:
        options: Any = dict(temperature=1.0, chunk_tokens=CHUNK)
        return fused_loss(hidden, weight, tokens, predecessors, scored, case.per_slot, counted, **options)[0]

    for keep in (60, 3, 0):
        calls.clear()
        kept = scored & (jnp.cumsum(scored).reshape(scored.shape) <= keep)
        run(kept).block_until_ready()
        jax.effects_barrier()
        assert len(calls) == -(-int(kept.sum()) // CHUNK)
    assert run._cache_size() == 1


@functools.cache
def temporary_bytes(function: Any, batch: int, length: int, width: int) -> int:
    """Compiled, not run: at a real vocabulary."""
    vocab, shape = 151_669, (batch, length)
    arrays = [
        ((*shape, width), "f4"),
        ((vocab, width), "f4"),
        (shape, "i4"),
        (shape, "i4"),
        (shape, "?"),
        (shape, "f4"),
    ]

    def loss(*args: Any) -> Any:
        per_slot = (args[5], args[5])
        return function(*args[:5], per_slot, linear, temperature=1.0, chunk_tokens=512)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    compiled = run.lower(*(jax.ShapeDtypeStruct(*array) for array in arrays)).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


@BOTH
@pytest.mark.parametrize("width", [64, 256])
def test_memory_is_an_eighth_of_the_plain_heads(function: Any, width: int) -> None:
    assert temporary_bytes(function, 8, 1024, width) <= temporary_bytes(plain_head, 8, 1024, width) / 8


@BOTH
def test_memory_does_not_grow_with_the_tokens(function: Any) -> None:
    short, long = (temporary_bytes(function, 1, length, 64) for length in (4096, 16384))
    # Beyond the chunk's logits there are a few numbers per slot: order, statistics and their gradients.
    assert long - short < 64 * (16384 - 4096)
