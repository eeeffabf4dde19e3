"""The train step: peers' figures, invariance to splitting and sharding, safety, determinism, no recompilation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from learner_jax.batches import Batch, rl_batch, supervised_batch
from learner_jax.batches.sequences import BatchError
from learner_jax.contracts.model import ModelConfig, parameters, parse_model_config
from learner_jax.losses.terms import loss_weights
from learner_jax.models import init_parameters
from learner_jax.settings.learner import (
    KLSettings,
    LearnerSettings,
    LossSettings,
    MeshSettings,
    OptimizerSettings,
    PolicySettings,
)
from learner_jax.training import golden_prompts, objective
from learner_jax.training.engine import Engine
from tests.support.tiny_model import TINY
from tests.support.trajectories import make_group


def settings(**changes: Any) -> LearnerSettings:
    base: dict[str, Any] = {
        "steps": 1,
        "groups_per_step": 4,
        "sequence_length": 8,
        "microbatch_rows": 8,
        "optimizer": OptimizerSettings(learning_rate=1e-3),
        "loss": LossSettings(kl=KLSettings(coefficient=0.05)),
    }
    return LearnerSettings(**(base | changes))


def make_engine(changed: LearnerSettings, *, devices: int = 1, config: ModelConfig = TINY) -> Engine:
    return Engine(
        changed,
        config,
        objective=objective.reinforcement(changed.loss),
        temperature=1.0,
        devices=jax.devices()[:devices],
    )


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.tree.map(np.asarray, init_parameters(TINY, jax.random.key(0)))


@pytest.fixture(scope="module")
def batch() -> Batch:
    groups = [make_group(f"run/{i}", seed=i, answer_tokens=2 + i % 3, rewards=[0.0, 1.0]) for i in range(4)]
    batch, _ = rl_batch(groups, LossSettings(), sequence_length=8, trained_version=1)
    noise = np.random.default_rng(1).normal(size=batch.tokens.shape).astype(np.float32)
    return dataclasses.replace(batch, reference_logprobs=np.asarray(batch.behavior_logprobs) + 0.1 * noise)


def one_step(engine: Engine, params: Any, batch: Batch) -> tuple[Any, dict[str, float]]:
    state, metrics = engine.step(engine.init_state(params, seed=0), batch, current_version=1)
    return jax.tree.map(np.asarray, state.params), {name: float(value) for name, value in metrics.items()}


def largest_relative_difference(a: Any, b: Any) -> float:
    flat_a, flat_b = flatten_dict(a), flatten_dict(b)
    return max(np.abs(flat_a[k] - flat_b[k]).max() / (np.abs(flat_b[k]).max() + 1e-12) for k in flat_a)


def test_peers_figures(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, KL and gradient norm that Tunix 0.1.7 and TRL 1.16 give for the same weights and batch."""
    monkeypatch.syspath_prepend(str(shared_data.parent / "peers"))
    peer = pytest.importorskip("peer_tunix_step")
    a = peer.parser().parse_args([])
    config = parse_model_config(
        {
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": a.vocab,
            "hidden_size": a.hidden,
            "intermediate_size": a.intermediate,
            "num_hidden_layers": a.layers,
            "num_attention_heads": a.heads,
            "num_key_value_heads": a.kv_heads,
            "head_dim": a.head_dim,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        },
        origin="peer",
    )
    weights = peer.hf_weights(a)
    flat = {
        row.path: np.stack([weights[row.hf_name.format(layer=i)] for i in range(config.num_layers)])
        if row.stacked
        else weights[row.hf_name]
        for row in parameters(config)
    }
    changed = settings(
        sequence_length=a.seq,
        microbatch_rows=a.batch,
        loss=LossSettings(kl=KLSettings(coefficient=a.beta), policy=PolicySettings(clip_low=a.epsilon)),
    )
    engine = make_engine(changed, config=config)
    state = engine.init_state(unflatten_dict(flat, sep="."), seed=0)
    made = peer.make_batch(a)
    tokens = np.concatenate([made["prompt_ids"], made["completion_ids"]], axis=1).astype(np.int32)

    def on_completions(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, 0), (a.prompt_len, 0)]).astype(np.float32)

    base = engine.statistics.logprobs(state.params, tokens)
    mask = on_completions(made["completion_mask"])
    _, metrics = engine.step(
        state,
        Batch(
            tokens=tokens,
            weights=loss_weights(mask, reduction="sequence_mean"),
            advantages=made["advantages"][:, None] * mask,
            behavior_logprobs=(base + on_completions(made["old_noise"])) * mask,
            reference_logprobs=(base + on_completions(made["ref_noise"])) * mask,
            policy_version=np.zeros(tokens.shape, np.int32),
        ),
        current_version=1,
    )
    assert float(metrics["loss"]) == pytest.approx(0.00084972, rel=1e-4)
    assert float(metrics["kl"]) == pytest.approx(0.0048950, rel=1e-4)
    assert float(metrics["grad_norm"]) == pytest.approx(1.0887, rel=1e-4)


@pytest.mark.parametrize("rows", [1, *(pytest.param(rows, marks=pytest.mark.soak) for rows in (2, 4))])
def test_microbatches_do_not_change_the_step(rows: int, params: Any, batch: Batch) -> None:
    whole, whole_metrics = one_step(make_engine(settings()), params, batch)
    split, split_metrics = one_step(make_engine(settings(microbatch_rows=rows)), params, batch)
    for name, value in whole_metrics.items():
        assert split_metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    # AdamW's first step is sign-like, so parameters are compared through a plain bound on the difference.
    assert largest_relative_difference(split, whole) < 1e-4


def test_rows_that_do_not_divide_over_the_mesh_are_refused() -> None:
    with pytest.raises(ValueError, match=r"learner\.microbatch_rows is 6"):
        make_engine(settings(microbatch_rows=6, mesh=MeshSettings(fsdp=-1)), devices=4)


def test_padding_never_matters(params: Any, batch: Batch) -> None:
    rng = np.random.default_rng(2)
    unsampled = np.asarray(batch.weights) == 0
    padding = unsampled & (np.cumsum(~unsampled, axis=1) > 0)
    assert padding.any()
    scrambled = dataclasses.replace(
        batch,
        tokens=np.where(padding, rng.integers(1, 32, batch.tokens.shape), batch.tokens).astype(np.int32),
        behavior_logprobs=np.where(padding, -7.0, batch.behavior_logprobs).astype(np.float32),
        reference_logprobs=np.where(padding, -9.0, batch.reference_logprobs).astype(np.float32),
        advantages=np.where(padding, 5.0, batch.advantages).astype(np.float32),
    )
    engine = make_engine(settings())
    clean, clean_metrics = one_step(engine, params, batch)
    dirty, dirty_metrics = one_step(engine, params, scrambled)
    assert dirty_metrics == pytest.approx(clean_metrics, rel=1e-6)
    assert largest_relative_difference(dirty, clean) < 1e-6


def test_step_moves_probability_towards_better_answers(params: Any, batch: Batch) -> None:
    engine = make_engine(settings(loss=LossSettings()))
    state = engine.init_state(params, seed=0)
    before = engine.statistics.logprobs(state.params, np.asarray(batch.tokens))
    on_policy = dataclasses.replace(batch, behavior_logprobs=before)
    for _ in range(5):
        state, _ = engine.step(state, on_policy, current_version=1)
    gain = engine.statistics.logprobs(state.params, np.asarray(batch.tokens)) - before
    sampled = np.asarray(batch.weights) > 0
    good = sampled & (np.asarray(batch.advantages) > 0)
    bad = sampled & (np.asarray(batch.advantages) < 0)
    assert gain[good].mean() > gain[bad].mean() + 0.01


def test_a_step_that_is_not_finite_changes_nothing(params: Any, batch: Batch) -> None:
    engine = make_engine(settings())
    poisoned = np.asarray(batch.advantages).copy()
    poisoned[np.asarray(batch.weights) > 0] = np.nan
    after, metrics = one_step(engine, params, dataclasses.replace(batch, advantages=poisoned))
    assert metrics["skipped"] == 1
    assert largest_relative_difference(after, params) == 0
    _, metrics = one_step(engine, params, batch)
    assert metrics["skipped"] == 0


def test_steps_are_deterministic_and_compiled_once(params: Any, batch: Batch) -> None:
    engine = make_engine(settings(microbatch_rows=4))

    def several() -> Any:
        state = engine.init_state(params, seed=0)
        for version in range(4):
            state, _ = engine.step(state, batch, current_version=version)
        return jax.tree.map(np.asarray, state.params)

    first, second = several(), several()
    for path, value in flatten_dict(first).items():
        np.testing.assert_array_equal(value, flatten_dict(second)[path])
    assert engine.num_compilations() == 3  # gradients, their sum, the update


def test_initial_parameters_survive_donation(params: Any, batch: Batch) -> None:
    engine = make_engine(settings())
    on_device = jax.tree.map(jnp.asarray, params)
    state = engine.init_state(on_device, seed=0)
    engine.step(state, batch, current_version=1)
    assert largest_relative_difference(jax.tree.map(np.asarray, on_device), params) == 0


def test_mismatch_counts_only_the_current_version(params: Any, batch: Batch) -> None:
    engine = make_engine(settings())
    exact = engine.statistics.logprobs(params, np.asarray(batch.tokens))
    sampled = np.asarray(batch.weights) > 0
    versions = np.where(sampled, np.where(np.arange(8)[:, None] < 4, 7, 6), -1).astype(np.int32)
    shifted = np.where(versions == 7, exact + 0.25, exact - 0.5).astype(np.float32)
    probe = dataclasses.replace(batch, behavior_logprobs=shifted, policy_version=versions)
    _, metrics = engine.step(engine.init_state(params, seed=0), probe, current_version=7)
    count = float((versions == 7).sum())
    assert float(metrics["mismatch_tokens"]) == count
    assert float(metrics["mismatch_sum"]) == pytest.approx(0.25 * count, rel=1e-4)
    assert float(metrics["mismatch_max"]) == pytest.approx(0.25, rel=1e-4)
    lagging = engine.lagging.mismatch(probe, {6: params, 7: params, 5: params}, current_version=7)
    assert lagging.num_tokens == (versions == 6).sum()
    assert lagging.mean == pytest.approx(0.5, rel=1e-4)


def test_supervised_steps_learn_to_answer(params: Any) -> None:
    changed = settings(optimizer=OptimizerSettings(learning_rate=1e-2))
    engine = Engine(changed, TINY, objective=objective.supervised, temperature=1.0, devices=jax.devices()[:1])
    examples = [([1, i, 2, i + 8, 3], [False, False, False, True, True]) for i in range(8)]
    batch = supervised_batch(examples, sequence_length=8)
    state = engine.init_state(params, seed=0)
    mask = np.asarray(batch.weights) > 0
    assert engine.statistics.all_correct(state.params, np.asarray(batch.tokens), mask).mean() < 0.5
    for _ in range(60):
        state, _ = engine.step(state, batch, current_version=-1)
    assert engine.statistics.all_correct(state.params, np.asarray(batch.tokens), mask).all()


def test_golden_logprobs_are_those_of_the_prompt_alone(params: Any) -> None:
    engine = make_engine(settings())
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    golden = golden_prompts(engine.publication.golden_logprobs(params, prompts), prompts)
    alone = golden_prompts(engine.publication.golden_logprobs(params, prompts[:1]), prompts[:1])[0]
    assert [len(g.logprobs) for g in golden] == [2, 4]
    np.testing.assert_allclose(golden[0].logprobs, alone.logprobs, atol=1e-6)


def test_too_long_trajectories_are_refused() -> None:
    with pytest.raises(BatchError, match=r"run/0/0 has 12 tokens, rows hold 8: raise learner\.sequence_length"):
        rl_batch([make_group("run/0", answer_tokens=9)], LossSettings(), sequence_length=8, trained_version=1)
    with pytest.raises(BatchError, match="9 tokens"):
        supervised_batch([([1] * 9, [True] * 9)], sequence_length=8)


def test_batch_statistics() -> None:
    groups = [
        make_group("run/0", version=5, rewards=[1.0, 1.0], answer_tokens=2),
        make_group("run/1", version=3, rewards=[0.0, 1.0], answer_tokens=4),
    ]
    batch, stats = rl_batch(groups, LossSettings(reduction="token_mean"), sequence_length=8, trained_version=6)
    assert stats.reward == 0.75
    assert (stats.staleness_mean, stats.staleness_max) == (2.0, 3)
    assert stats.staleness_tokens == [0, 4, 0, 8]
    assert (stats.num_tokens, stats.answer_tokens_mean) == (12, 3.0)
    assert stats.zero_variance_groups == 1
    assert not np.asarray(batch.advantages)[:2].any()
    assert np.asarray(batch.weights).sum() == pytest.approx(1.0)
