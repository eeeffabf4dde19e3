"""Weir's side of the learner benchmark takes the step that the formula asks for, and times what it says."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from learner_jax.models import merge
from tests.support.bench_batches import TINY, small_batch
from tools.bench.learner import worker
from tools.bench.learner.cases import PaddedBatch, expected, parameter_tree, prefix, weights


def test_rows_join_prompt_and_answer_and_find_shared_prompts() -> None:
    batch = prefix(37, seed=0, groups=2, prompt=3, answer=2)
    joined = worker.Rows.of(batch)
    np.testing.assert_array_equal(joined.tokens, np.concatenate([batch.prompt_ids, batch.completion_ids], axis=1))
    assert joined.shared.tolist() == [3] * 16
    assert joined.row_lengths() == (5, 3 + 8 * 2)
    ragged = worker.Rows.of(small_batch())
    assert ragged.lengths.tolist() == [2, 4, 6, 5, 7, 4, 3, 5]
    row = small_batch()
    assert ragged.tokens[4, :7].tolist() == [*row.prompt_ids[4, 4:], *row.completion_ids[4, :5]]
    assert ragged.ref_noise[4].tolist() == [0.0, 0.0, *row.ref_noise[4, :5]]
    assert ragged.old_noise[4].tolist() == [0.0, 0.0, *row.old_noise[4, :5]]
    assert ragged.answers[4].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert not ragged.shared.any()


def plain_grad_norm(batch: PaddedBatch) -> float:
    """By differentiating the loss over one sequence a row and all logits; prompts padded, nothing packed."""
    config = TINY.config()
    params = unflatten_dict(parameter_tree(config, weights(config, 0)), sep=".")
    joined = worker.Rows.of(batch)
    tokens, answers = jnp.asarray(joined.tokens), jnp.asarray(joined.answers)[:, 1:]

    def logprobs(params: Any) -> jax.Array:
        model = merge(config, params)
        log_p = jax.nn.log_softmax(model.logits(model.hidden_states(tokens)[:, :-1]), axis=-1)
        return jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]

    base = logprobs(params)
    behavior, reference = base + joined.old_noise[:, 1:], base + joined.ref_noise[:, 1:]
    advantages = jnp.asarray(batch.advantages)[:, None]

    def loss(params: Any) -> jax.Array:
        current = logprobs(params)
        ratio = jnp.exp(current - behavior)
        gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
        to_reference = reference - current
        kl = jnp.exp(to_reference) - to_reference - 1
        return jnp.mean(jnp.sum((0.04 * kl - gain) * answers, axis=1) / jnp.sum(answers, axis=1))

    leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    return float(np.sqrt(sum(float(np.sum(np.square(np.asarray(leaf, np.float64)))) for leaf in leaves)))


def test_worker_takes_the_step_that_the_formula_asks_for() -> None:
    ragged, same = small_batch(prompt=40), prefix(37, 0, groups=1, prompt=40, answer=9)
    joined = {f.name: (getattr(ragged, f.name), getattr(same, f.name)) for f in dataclasses.fields(PaddedBatch)}
    batch = PaddedBatch(**{name: np.concatenate(arrays) for name, arrays in joined.items()})
    prepared = worker.prepare(worker.Rows.of(batch), batch.advantages, TINY, seed=0)
    figures = worker.measure(prepared.step, warmup=0, steps=2, num_tokens=batch.num_tokens)
    right = expected(batch)
    assert figures["loss"] == pytest.approx(right.loss, abs=2e-6)
    assert figures["kl"] == pytest.approx(right.kl_of_answers, rel=1e-4)
    assert figures["grad_norm"] == pytest.approx(plain_grad_norm(batch), rel=1e-4)
    assert prepared.shares_prompts
    assert prepared.num_slots == 2 * (40 + 8 * 9)
    assert figures["tokens_per_s"] == pytest.approx(1e3 * batch.num_tokens / figures["step_ms"])
    assert figures["compile_s"] > 1e-3 * figures["step_ms"]


def test_figures_are_medians_after_the_warm_up_and_of_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    walls = iter([0, 100, 200, 201, 300, 303, 400, 402])
    cpus = iter([0, 50, 60, 64, 70, 75, 80, 89])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: float(next(walls)))
    monkeypatch.setattr(worker.time, "process_time", lambda: float(next(cpus)))
    losses = iter([0.25, 1.0, 2.0, 3.0])

    def step() -> dict[str, float]:
        return {"loss": next(losses), "kl": 0.5, "grad_norm": 2.0}

    figures = worker.measure(step, warmup=1, steps=3, num_tokens=30)
    assert (figures["step_ms"], figures["step_cpu_ms"], figures["tokens_per_s"]) == (2000, 5000, 15)
    assert (figures["compile_s"], figures["loss"]) == (100, 0.25)
