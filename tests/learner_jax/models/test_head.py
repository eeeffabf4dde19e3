"""The fused head against the definitions in float64, against the plain head, and on every small mesh."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from learner_jax.models.head import HeadOutputs, fused_loss, scored_stats
from tests.support import finite_differences

CHUNK = 4
#: Optimisation passes cost more than they save on arrays this small.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


@dataclass(frozen=True)
class Case:
    """Inputs of the head, and what each slot weighs in a loss that is linear in log-prob and entropy."""

    hidden: np.ndarray
    weight: np.ndarray
    tokens: np.ndarray
    predecessors: np.ndarray
    scored: np.ndarray
    for_logprobs: np.ndarray
    for_entropy: np.ndarray

    @property
    def head(self) -> tuple[jax.Array, ...]:
        names = ("hidden", "weight", "tokens", "predecessors", "scored")
        return tuple(jnp.asarray(getattr(self, name)) for name in names)

    @property
    def per_slot(self) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(self.for_logprobs), jnp.asarray(self.for_entropy)


def make_case(batch: int = 3, length: int = 9, width: int = 5, vocab: int = 11, seed: int = 0) -> Case:
    """Rows with different numbers of scored slots, the last with none; some slots share a predecessor."""
    random = np.random.default_rng(seed)
    scored = random.random((batch, length)) < np.linspace(0.9, 0.3, batch)[:, None]
    scored[:, 0], scored[-1] = False, False
    predecessors = np.broadcast_to(np.arange(length, dtype=np.int32) - 1, (batch, length)).copy()
    predecessors[:, 4], scored[0, 3:5] = 2, True
    return Case(
        hidden=random.normal(size=(batch, length, width)).astype(np.float32),
        weight=random.normal(size=(vocab, width)).astype(np.float32),
        tokens=random.integers(0, vocab, (batch, length)).astype(np.int32),
        predecessors=predecessors,
        scored=scored,
        for_logprobs=random.normal(size=(batch, length)).astype(np.float32),
        for_entropy=random.normal(size=(batch, length)).astype(np.float32),
    )


@dataclass(frozen=True)
class Oracle:
    logprobs: np.ndarray
    entropy: np.ndarray
    correct: np.ndarray
    loss: float
    d_hidden: np.ndarray
    d_weight: np.ndarray


def oracle(case: Case, temperature: float = 1.0) -> Oracle:
    """Token by token in float64, from p = softmax(W h / temperature) and H = -sum p log p."""
    hidden, weight = case.hidden.astype(np.float64), case.weight.astype(np.float64)
    logprobs, entropy = np.zeros(case.scored.shape), np.zeros(case.scored.shape)
    correct = np.zeros(case.scored.shape, bool)
    d_hidden, d_weight, loss = np.zeros_like(hidden), np.zeros_like(weight), 0.0
    for b, t in zip(*np.nonzero(case.scored), strict=True):
        source, token = case.predecessors[b, t], case.tokens[b, t]
        p = np.exp(weight @ hidden[b, source] / temperature)
        p /= p.sum()
        jacobian = np.diag(p) - np.outer(p, p)
        logprobs[b, t], entropy[b, t] = np.log(p[token]), -(p * np.log(p)).sum()
        correct[b, t] = p.argmax() == token
        d_p = -float(case.for_entropy[b, t]) * (np.log(p) + 1)
        d_p[token] += float(case.for_logprobs[b, t]) / p[token]
        d_logits = jacobian @ d_p / temperature
        d_hidden[b, source] += d_logits @ weight
        d_weight += np.outer(d_logits, hidden[b, source])
        loss += case.for_logprobs[b, t] * logprobs[b, t] + case.for_entropy[b, t] * entropy[b, t]
    return Oracle(logprobs, entropy, correct, loss, d_hidden, d_weight)


def linear(logprobs: jax.Array, entropy: jax.Array, per_slot: Any) -> jax.Array:
    return jnp.sum(per_slot[0] * logprobs + per_slot[1] * entropy)


def by_scored_stats(
    hidden: Any,
    weight: Any,
    tokens: Any,
    predecessors: Any,
    scored: Any,
    per_slot: Any,
    token_loss: Any,
    **options: Any,
) -> tuple[jax.Array, HeadOutputs]:
    """What `fused_loss` returns, from `scored_stats`."""
    stats = scored_stats(
        hidden, weight, tokens, predecessors, scored, entropy_gradient=True, with_argmax=True, **options
    )
    return token_loss(stats.logprobs, stats.entropy, per_slot), stats


def plain_head(
    hidden: Any,
    weight: Any,
    tokens: Any,
    predecessors: Any,
    scored: Any,
    per_slot: Any,
    token_loss: Any,
    **options: Any,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """All logits at once, and JAX's own derivative; `scored` counts through the weights in `per_slot` alone."""
    context = jnp.take_along_axis(hidden, jnp.maximum(predecessors, 0)[..., None], axis=1)
    logits = jnp.einsum("btd,vd->btv", context, weight, precision="highest") / options["temperature"]
    log_p = jax.nn.log_softmax(logits)
    vocabulary = jnp.arange(weight.shape[0], dtype=tokens.dtype)
    logprobs = jnp.sum(jnp.where(vocabulary == tokens[..., None], log_p, 0.0), axis=-1)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return token_loss(logprobs, entropy, per_slot), (logprobs, entropy)


def differentiated(
    function: Any, case: Case, token_loss: Any = linear, per_slot: Any = None, *, scale: float = 1.0, **options: Any
) -> tuple[float, Any, np.ndarray, np.ndarray]:
    """(loss, statistics, gradient of hidden, gradient of the weight)."""
    options = {"temperature": 1.0, "chunk_tokens": CHUNK} | options

    def loss(hidden: Any, weight: Any, rest: Any, per_slot: Any) -> Any:
        value, stats = function(hidden, weight, *rest, per_slot, token_loss, **options)
        return scale * value, stats

    hidden, weight, *rest = case.head
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK_COMPILE)
    (value, stats), gradients = run(hidden, weight, rest, case.per_slot if per_slot is None else per_slot)
    return float(value), jax.tree.map(np.asarray, stats), *(np.asarray(g, np.float32) for g in gradients)


def assert_near(got: Any, expected: Any, relative: float = 1e-5) -> None:
    """Within `relative` of the largest expected entry (or of 1: entries of order 1 may cancel)."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=relative * max(1.0, np.abs(expected).max()))


def assert_is(result: Any, expected: Oracle) -> None:
    loss, stats, d_hidden, d_weight = result
    assert_near(loss, expected.loss)
    assert_near(stats.logprobs, expected.logprobs)
    assert_near(stats.entropy, expected.entropy)
    np.testing.assert_array_equal(stats.argmax_correct, expected.correct)
    assert_near(d_hidden, expected.d_hidden)
    assert_near(d_weight, expected.d_weight)


BOTH = pytest.mark.parametrize("function", [fused_loss, by_scored_stats])


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


def policy_loss(logprobs: jax.Array, entropy: jax.Array, per_slot: Any) -> jax.Array:
    """PPO's clip, k3 KL to a reference and an entropy bonus; terms and masks as an objective has them."""
    ratio = jnp.exp(logprobs - per_slot["behavior_logprobs"])
    clipped = jnp.clip(ratio, 0.8, 1.2)
    surrogate = -jnp.minimum(ratio * per_slot["advantages"], clipped * per_slot["advantages"])
    log_ratio = per_slot["reference_logprobs"] - logprobs
    k3 = jnp.exp(log_ratio) - 1 - log_ratio
    term = jnp.where(per_slot["fresh"], surrogate, 0.0) + 0.1 * k3 - 0.05 * entropy
    return jnp.sum(per_slot["weights"] * term)


def policy_inputs(case: Case) -> dict[str, jax.Array]:
    random, shape = np.random.default_rng(1), case.scored.shape
    near = oracle(case).logprobs

    def noise(scale: float) -> np.ndarray:
        return scale * random.normal(size=shape).astype(np.float32)

    return {
        "behavior_logprobs": jnp.asarray(near + noise(0.3), jnp.float32),
        "reference_logprobs": jnp.asarray(near + noise(0.3), jnp.float32),
        "advantages": jnp.asarray(noise(1.0)),
        "weights": jnp.asarray(case.scored / case.scored.sum(), jnp.float32),
        "fresh": jnp.asarray(random.random(shape) < 0.8),
    }


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


FACTORISATIONS = [
    (data, fsdp, count // (data * fsdp))
    for count in (4, 8)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if count % (data * fsdp) == 0
]


def mesh_of(*sizes: int) -> Mesh:
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


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


@pytest.mark.parametrize("sizes", FACTORISATIONS)
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


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scalar from token_loss .* got shape \(1, 1\)"):
        differentiated(fused_loss, make_case(), lambda logprobs, entropy, per_slot: logprobs)


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
