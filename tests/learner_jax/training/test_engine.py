"""The compiled train step: the same on every mesh, compiled once, flat in depth, and what it says it computes."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from learner_jax.batches import Batch, rl_batch, supervised_batch
from learner_jax.batches.packing import pack_rows
from learner_jax.batches.rows import Lengths
from learner_jax.contracts.model import parse_model_config
from learner_jax.models import flops, init_parameters
from learner_jax.settings.learner import KLSettings, LearnerSettings, LossSettings, MeshSettings, OptimizerSettings
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from learner_jax.training.optimizer import make_optimizer
from learner_jax.training.publication import Publication, golden_prompts
from tests.support.tiny_model import TINY, TINY_JSON
from tests.support.trajectories import make_group

#: Heads, feed-forward and vocabulary divide by 8, so that every mesh of 8 devices is possible.
WIDE = parse_model_config(
    TINY_JSON | {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4, "num_hidden_layers": 2},
    origin="test",
)
LOSS = LossSettings(kl=KLSettings(coefficient=0.05), entropy_coefficient=0.01)


def make_engine(config: Any = TINY, *, devices: int = 1, **changes: Any) -> Engine:
    base = {"steps": 1, "groups_per_step": 4, "sequence_length": 12, "microbatch_rows": 8, "loss": LOSS}
    settings = LearnerSettings(**(base | changes))
    chosen = objective.reinforcement(settings.loss)
    return Engine(settings, config, objective=chosen, temperature=0.9, devices=jax.devices()[:devices])


def make_batch(num_groups: int = 4, *, answer_tokens: int = 5, prompt_tokens: int = 4) -> Batch:
    groups = [
        make_group(
            f"run/{i}",
            seed=i,
            size=4,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens - i % 3,
            rewards=[0.0, 1.0, 0.5, 0.2],
        )
        for i in range(num_groups)
    ]
    batch, _ = rl_batch(groups, LOSS, sequence_length=12, trained_version=1, reference=lambda rows: -0.1 * rows.tokens)
    return batch


def parameters_of(config: Any) -> Any:
    return jax.tree.map(np.asarray, init_parameters(config, jax.random.key(0)))


def meshes(devices: int) -> list[tuple[int, int, int]]:
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    return [(d, f, t) for d, f, t in itertools.product(sizes, repeat=3) if d * f * t == devices]


def relative_difference(a: Any, b: Any) -> float:
    """Of the whole gradient, by its norm."""
    flat_a, flat_b = flatten_dict(a), flatten_dict(b)
    difference = sum(float(((np.float64(flat_a[k]) - np.float64(flat_b[k])) ** 2).sum()) for k in flat_b)
    return float(np.sqrt(difference / sum(float((np.float64(x) ** 2).sum()) for x in flat_b.values())))


@pytest.fixture(scope="module")
def single_device() -> Any:
    return make_engine(WIDE).gradients(parameters_of(WIDE), make_batch(), current_version=1)


#: of every kind: one axis, two, all three; the others are in the soak
IN_SUITE = {(1, 1, 4), (2, 2, 1), (1, 8, 1), (2, 2, 2)}
MESHES = [
    pytest.param(mesh, id="x".join(map(str, mesh)), marks=() if mesh in IN_SUITE else pytest.mark.soak)
    for mesh in [*meshes(4), *meshes(8)]
]


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(mesh: tuple[int, int, int], single_device: Any) -> None:
    data, fsdp, tensor = mesh
    engine = make_engine(
        WIDE,
        devices=data * fsdp * tensor,
        mesh=MeshSettings(data=data, fsdp=fsdp, tensor=tensor),
        row_tokens=(24,),
        logits_chunk_tokens=16,
    )
    params = engine.placed(parameters_of(WIDE))
    got = engine.gradients(params, make_batch(), current_version=1)
    assert float(got.loss) == pytest.approx(float(single_device.loss), rel=1e-5)
    assert relative_difference(got.grads, single_device.grads) < 1e-5
    for path, leaf in flatten_dict(got.grads, sep=".").items():
        assert leaf.sharding.is_equivalent_to(flatten_dict(params, sep=".")[path].sharding, leaf.ndim), path


def test_nothing_is_compiled_after_the_first_step() -> None:
    engine = make_engine(row_tokens=(12, 24), microbatch_rows=2)
    state = engine.init_state(parameters_of(TINY), seed=0)
    state, _ = engine.step(state, make_batch(1), current_version=1)
    compiled = engine.num_compilations()
    shapes = set()
    for batch in (make_batch(1), make_batch(4), make_batch(2, answer_tokens=2, prompt_tokens=2), make_batch(3)):
        shapes.add(engine.pack(batch).plan.sources.shape)
        state, _ = engine.step(state, batch, current_version=2)
    assert len(shapes) >= 3
    assert {length for _, length in shapes} == {12, 24}
    assert engine.num_compilations() == compiled


def test_the_program_does_not_grow_with_depth() -> None:
    def size(num_layers: int) -> int:
        engine = make_engine(dataclasses.replace(TINY, num_layers=num_layers))
        return engine.lowered(12)[0].as_text().count("\n")

    assert size(12) == size(2)


def test_golden_prompts_lie_in_rows_that_mesh_and_kernel_can_take() -> None:
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10]]
    alone = make_engine(WIDE)
    expected = golden_prompts(alone.publication.golden_logprobs(parameters_of(WIDE), prompts), prompts)
    spread = make_engine(WIDE, devices=4, mesh=MeshSettings(data=2, fsdp=2))
    got = golden_prompts(spread.publication.golden_logprobs(spread.placed(parameters_of(WIDE)), prompts), prompts)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)

    shapes = []

    def record(_: Any, tokens: np.ndarray, *rest: Any) -> Any:
        shapes.append(tokens.shape)
        return SimpleNamespace(logprobs=tokens)

    publication = Publication(dataclasses.replace(spread._model, attention="splash"))
    publication._stats = record  # type: ignore[assignment]
    publication.golden_logprobs({}, prompts)
    assert shapes == [(4, 128)]


def test_flops_count_real_tokens_alone() -> None:
    plan = pack_rows(Lengths.of([3, 5]), width=5, row_lengths=(20,)).plan(4)
    # The matrices of a layer of TINY: q and o, k and v, gate, up and down.
    body = TINY.num_layers * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)
    pairs = 1 + 2 + 3 + 1 + 2 + 3 + 4 + 5
    expected = 6 * body * 8 + 6 * 32 * 32 * 4 + 12 * TINY.num_layers * 32 * pairs
    assert flops.train_step_flops(TINY, plan.layout, num_scored=4) == expected


def test_matmul_peak_is_a_rate() -> None:
    assert 1e8 < flops.matmul_peak(jax.devices()[0], "float32", size=256) < 1e15


@pytest.mark.parametrize(("moments", "bytes_per_parameter"), [("float32", 8), ("bfloat16", 6), ("factored", 2)])
def test_moments_take_the_memory_they_say_and_learn(moments: Any, bytes_per_parameter: int) -> None:
    settings = OptimizerSettings(learning_rate=2e-3, moments=moments, beta2=0.99)
    large = {"weight": jax.ShapeDtypeStruct((4, 512, 512), np.float32)}
    state = jax.eval_shape(make_optimizer(settings).init, large)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert size == pytest.approx(bytes_per_parameter * 4 * 512 * 512, rel=0.01)

    engine = Engine(
        LearnerSettings(steps=1, groups_per_step=1, sequence_length=6, microbatch_rows=8, optimizer=settings),
        TINY,
        objective=objective.supervised,
        temperature=1.0,
        devices=jax.devices()[:2],
    )
    batch = supervised_batch([([1, i, i + 8], [False, False, True]) for i in range(8)], sequence_length=6)
    trained = engine.init_state(parameters_of(TINY), seed=0)
    losses = []
    for _ in range(40):
        trained, metrics = engine.step(trained, batch, current_version=0)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_factored_moments_follow_adafactor_in_float64() -> None:
    """Two steps of one matrix: second moment by row and column means, bias-corrected, then an average of updates."""
    settings = OptimizerSettings(learning_rate=1.0, moments="factored", beta1=0.9, beta2=0.99, max_grad_norm=1e9)
    optimizer = make_optimizer(settings)
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(128, 130)) for _ in range(2)]
    params = {"weight": np.zeros((128, 130), np.float32)}
    state = optimizer.init(params)
    rows, columns, average = np.zeros(128), np.zeros(130), np.zeros((128, 130))
    for t, gradient in enumerate(gradients, start=1):
        updates, state = optimizer.update({"weight": gradient.astype(np.float32)}, state, params)
        decay = 0.99 * (1 - 0.99 ** (t - 1)) / (1 - 0.99**t)
        rows = decay * rows + (1 - decay) * (gradient**2).mean(axis=1)
        columns = decay * columns + (1 - decay) * (gradient**2).mean(axis=0)
        scaled = gradient / np.sqrt(np.outer(rows / rows.mean(), columns))
        average = 0.9 * average + 0.1 * scaled
        expected = -average / (1 - 0.9**t)
        # The average is kept in bf16: 8 bits.
        np.testing.assert_allclose(updates["weight"], expected, rtol=2e-2, atol=2e-2)
