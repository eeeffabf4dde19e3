"""The value function: what it learns, and what its targets are made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from learner_jax.batches import pack_rows
from learner_jax.settings.learner import (
    LossSettings,
    OptimizerSettings,
    PolicySettings,
    ValueSettings,
)
from learner_jax.training import microbatches
from tests.support.composed_losses import (
    GROUPS,
    LOSSES,
    VTRACE,
    gradients,
    make_batch,
    make_engine,
    relative_difference,
)
from tests.support.composed_losses import params as params
from tests.support.trajectories import make_group


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_values_learn_what_states_are_worth(kind: str, params: Any) -> None:
    """Two prompts, one always rewarded with 1 and one with -1: the value of their first token's state tells them."""
    loss = LossSettings(**VTRACE | {"value": ValueSettings(model=kind)})  # type: ignore[arg-type]
    engine = make_engine(loss, optimizer=OptimizerSettings(learning_rate=3e-3))
    groups = [make_group(f"run/{i}", seed=i % 2, rewards=[1.0, 1.0] if i % 2 else [-1.0, -1.0]) for i in range(4)]
    state = engine.init_state(params, seed=0)
    batch = make_batch(engine, groups, state)
    for _ in range(60):
        state, metrics = engine.step(state, batch, current_version=3)
    values = np.asarray(engine.statistics.of(state.params, np.asarray(batch.tokens)).values_after)[:, 2]
    np.testing.assert_allclose(values, [-1, -1, 1, 1, -1, -1, 1, 1], atol=0.25)
    assert float(metrics["value_loss"]) < 0.05


def test_the_ratio_is_in_the_advantage_or_in_the_objective_but_never_in_both(params: Any) -> None:
    """Within the bounds, at rho <= 1, PPO on unweighted V-trace advantages has IMPALA's gradient."""
    unbounded = PolicySettings(objective="ppo", clip_low=1.0, clip_high=float("inf"))
    flat = []
    for policy in (PolicySettings(objective="policy_gradient", importance="none"), unbounded):
        loss = LossSettings(**VTRACE | {"policy": policy})
        groups = [  # behaviour log-probs above any that the model gives, so that every ratio is below 1
            [dataclasses.replace(t, behavior_logprobs=np.where(t.loss_mask, -0.5, 0).astype(np.float32)) for t in g]
            for g in GROUPS
        ]
        flat.append(gradients(make_engine(loss), params, groups)[0])
    assert relative_difference(flat[1], flat[0]) < 1e-5


def test_a_separate_critic_leaves_the_policys_gradient_alone(params: Any) -> None:
    def policy_gradient_with(coefficient: float, kind: str) -> dict[Any, np.ndarray]:
        value = ValueSettings(model=kind, coefficient=coefficient)  # type: ignore[arg-type]
        engine = make_engine(LossSettings(**VTRACE | {"value": value}))
        flat, _ = gradients(engine, params, GROUPS)
        return {path: g for path, g in flat.items() if path[0] != "value"}

    apart = policy_gradient_with(1.0, "separate")
    assert relative_difference(policy_gradient_with(9.0, "separate"), apart) < 1e-6
    assert relative_difference(policy_gradient_with(9.0, "shared"), apart) > 1e-2


def test_whitened_advantages_are_those_of_the_whole_batch(params: Any) -> None:
    engine = make_engine(LOSSES["gae, whitened, clipped values"], microbatch_rows=2)
    batch = make_batch(engine, GROUPS, engine.init_state(params, seed=0))
    learned = np.asarray(batch.advantages)[np.asarray(batch.weights) > 0]
    assert learned.mean() == pytest.approx(0.0, abs=1e-5)
    assert learned.std() == pytest.approx(1.0, abs=1e-3)


def test_a_batch_is_packed_once_for_all_that_is_computed_of_it(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []

    def counted(*arguments: Any, **named: Any) -> Any:
        packed.append(arguments)
        return pack_rows(*arguments, **named)

    engine = make_engine(LOSSES["gae, whitened, clipped values"], microbatch_rows=2)
    state = engine.init_state(params, seed=0)
    batch = make_batch(engine, GROUPS, state)
    monkeypatch.setattr(microbatches, "pack_rows", counted)
    planned = engine.statistics.prepared(state.params, engine.planned(batch), current_version=3)
    (update,) = engine.updates(planned, [8])
    rows = engine.pack(update)
    assert len(packed) == 1
    assert rows.plan is planned.packing().plan(2)
    halves = [engine.pack(half).rows for half in engine.updates(planned, [4, 4])]
    assert len(packed) == 3
    assert sum(np.count_nonzero(half.weights) for half in halves) == np.count_nonzero(rows.rows.weights)
