"""Inputs of the fused head, its definition in float64, and the plain head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from learner_jax.models.head import HeadOutputs, fused_loss, scored_stats

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


def mesh_of(*sizes: int) -> Mesh:
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)
