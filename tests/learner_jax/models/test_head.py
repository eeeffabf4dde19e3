"""The fused head against its definition in float64, and against the plain head."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.models.head import fused_loss, scored_stats
from tests.support import finite_differences
from tests.support.heads import (
    BOTH,
    CHUNK,
    assert_is,
    assert_near,
    by_scored_stats,
    differentiated,
    linear,
    make_case,
    mesh_of,
    oracle,
    plain_head,
    policy_inputs,
    policy_loss,
)


def test_the_oracles_gradients_are_those_of_its_loss() -> None:
    case, temperature = make_case(), 0.7
    expected = oracle(case, temperature)
    for name, gradient in (("hidden", expected.d_hidden), ("weight", expected.d_weight)):
        numeric = finite_differences.gradient(
            lambda at, name=name: oracle(replace(case, **{name: at}), temperature).loss, getattr(case, name)
        )
        np.testing.assert_allclose(gradient, numeric, rtol=0, atol=1e-7)


@BOTH
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_values_and_gradients_are_the_definitions(function: Any, temperature: float) -> None:
    case = make_case()
    assert 0 < oracle(case).correct.sum() < case.scored.sum()
    assert_is(differentiated(function, case, temperature=temperature), oracle(case, temperature))


@BOTH
@pytest.mark.parametrize("chunk_tokens", [0, 1, 2, 5, 1000])
def test_the_chunk_size_changes_no_number(function: Any, chunk_tokens: int) -> None:
    case = make_case()
    assert case.scored.sum() % 5 not in (0, case.scored.sum())
    assert_is(differentiated(function, case, chunk_tokens=chunk_tokens), oracle(case))


def test_entropy_without_its_gradient() -> None:
    case = make_case()

    def function(*args: Any, **options: Any) -> Any:
        stats = scored_stats(*args[:5], **options)
        assert stats.argmax_correct is None
        return linear(stats.logprobs, stats.entropy, args[5]), stats

    loss, stats, d_hidden, d_weight = differentiated(function, case)
    assert_near(loss, oracle(case).loss)
    assert_near(stats.entropy, oracle(case).entropy)
    expected = oracle(replace(case, for_entropy=np.zeros_like(case.for_entropy)))
    assert_near(d_hidden, expected.d_hidden)
    assert_near(d_weight, expected.d_weight)


@BOTH
def test_unscored_slots_say_and_do_nothing(function: Any) -> None:
    case = make_case()
    used = np.zeros(case.scored.shape, bool)
    for b, t in zip(*np.nonzero(case.scored), strict=True):
        used[b, case.predecessors[b, t]] = True
    poisoned = replace(
        case,
        hidden=np.where(used[..., None], case.hidden, np.float32(np.nan)),
        tokens=np.where(case.scored, case.tokens, 10**6).astype(np.int32),
        predecessors=np.where(case.scored, case.predecessors, -1).astype(np.int32),
    )
    poison = np.nan if function is fused_loss else 0.0
    per_slot = tuple(jnp.where(case.scored, x, poison) for x in case.per_slot)
    result = differentiated(function, poisoned, per_slot=per_slot)
    assert_is(result, oracle(case))
    _, stats, d_hidden, _ = result
    for values in (stats.logprobs, stats.entropy, stats.argmax_correct):
        assert not np.any(values[~case.scored])
    assert not np.any(d_hidden[~used])
    assert np.all(np.any(d_hidden[used] != 0, axis=-1))


@BOTH
def test_nothing_scored(function: Any) -> None:
    case = make_case()
    result = differentiated(function, replace(case, scored=np.zeros_like(case.scored)))
    for leaf in jax.tree.leaves(result):
        assert not np.any(leaf)


def test_places_beyond_the_last_token_add_nothing_whatever_the_loss_says_of_them() -> None:
    case = make_case()
    assert case.scored.sum() % CHUNK

    def reciprocal(logprobs: jax.Array, entropy: jax.Array, per_slot: Any) -> jax.Array:
        return jnp.sum(jnp.exp(logprobs) / jnp.abs(per_slot[0]) + jnp.log(entropy) + 1)

    loss, _, d_hidden, d_weight = differentiated(fused_loss, case, reciprocal)
    whole, _, *gradients = differentiated(fused_loss, case, reciprocal, chunk_tokens=int(case.scored.sum()))
    expected, scored = oracle(case), case.scored
    terms = np.exp(expected.logprobs[scored]) / np.abs(case.for_logprobs[scored]) + np.log(expected.entropy[scored]) + 1
    assert_near(loss, terms.sum())
    assert_near(whole, terms.sum())
    assert_near(d_hidden, gradients[0])
    assert_near(d_weight, gradients[1])


@pytest.mark.parametrize("sizes", [None, (1, 1, 4)])
def test_an_unknown_token_is_nan_and_its_neighbours_are_not(sizes: Any) -> None:
    case, mesh = make_case(vocab=12), None if sizes is None else mesh_of(*sizes)
    slots = np.argwhere(case.scored)[[1, 3, 6]]
    tokens, predecessors, unknown = case.tokens.copy(), case.predecessors.copy(), np.zeros(case.scored.shape, bool)
    for (b, t), token in zip(slots[:2], (12, -1), strict=True):
        tokens[b, t] = token
    orphan = tuple(slots[2])
    predecessors[orphan] = -1
    for b, t in slots:
        unknown[b, t] = True
    broken = replace(case, tokens=tokens, predecessors=predecessors)

    def of_known(logprobs: jax.Array, entropy: jax.Array, per_slot: Any) -> jax.Array:
        return jnp.sum(per_slot[0] * jnp.where(jnp.isnan(logprobs), 0.0, logprobs))

    _, stats, d_hidden, d_weight = differentiated(by_scored_stats, broken, of_known, mesh=mesh)
    np.testing.assert_array_equal(np.isnan(stats.logprobs), unknown)
    assert np.argwhere(np.isnan(stats.entropy)).tolist() == [list(orphan)]
    expected = oracle(replace(case, scored=case.scored & ~unknown, for_entropy=np.zeros_like(case.for_entropy)))
    assert_near(np.where(unknown, 0.0, stats.logprobs), expected.logprobs)
    assert_near(d_hidden, expected.d_hidden)
    assert_near(d_weight, expected.d_weight)
    assert np.isnan(differentiated(fused_loss, broken, mesh=mesh)[0])


def test_a_policy_loss_equals_automatic_differentiation() -> None:
    case = make_case(batch=4, length=12)
    per_slot = policy_inputs(case)
    run = functools.partial(differentiated, case=case, token_loss=policy_loss, per_slot=per_slot, temperature=0.9)
    fused, general, plain = run(fused_loss), run(by_scored_stats), run(plain_head)
    assert np.abs(plain[3]).max() > 0.01
    for other in (general, plain):
        for index in (0, 2, 3):
            np.testing.assert_allclose(fused[index], other[index], rtol=0, atol=1e-5 * np.abs(plain[index]).max())
    for mine, theirs in zip(jax.tree.leaves(fused[1]), jax.tree.leaves(general[1]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@BOTH
def test_gradients_scale_with_the_loss(function: Any) -> None:
    case = make_case()
    once, thrice = differentiated(function, case), differentiated(function, case, scale=3.0)
    for index in (0, 2, 3):
        assert_near(thrice[index], 3 * np.asarray(once[index]), 1e-6)


def test_the_fused_statistics_carry_no_gradient() -> None:
    def function(*args: Any, **options: Any) -> Any:
        loss, stats = fused_loss(*args, **options)
        return 0 * loss + jnp.sum(stats.logprobs + stats.entropy), stats

    loss, _, d_hidden, d_weight = differentiated(function, make_case())
    assert loss != 0
    assert not np.any(d_hidden)
    assert not np.any(d_weight)


def test_a_tie_for_the_mode_is_correct() -> None:
    case = make_case()
    _, stats, _, _ = differentiated(fused_loss, replace(case, weight=np.zeros_like(case.weight)))
    np.testing.assert_array_equal(stats.argmax_correct, case.scored)


@BOTH
def test_bfloat16_stays_near_float32(function: Any) -> None:
    # bf16 keeps 8 bits: operands are off by 2^-9 = 0.2%, and so is each d_logit; logits here reach 8. Both operands'
    # errors add, hence 1% of the largest entry, and 3% where a ten-token sum of d_logits cancels.
    case = make_case(width=8)
    low = replace(case, hidden=jnp.asarray(case.hidden, jnp.bfloat16))
    expected = oracle(case)
    _, stats, d_hidden, d_weight = differentiated(function, low)
    assert stats.logprobs.dtype == np.float32
    assert_near(stats.logprobs, expected.logprobs, 0.01)
    assert_near(stats.entropy, expected.entropy, 0.03)
    assert_near(d_hidden, expected.d_hidden, 0.03)
    assert_near(d_weight, expected.d_weight, 0.03)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scalar from token_loss .* got shape \(1, 1\)"):
        differentiated(fused_loss, make_case(), lambda logprobs, entropy, per_slot: logprobs)
