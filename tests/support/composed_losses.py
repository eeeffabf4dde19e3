"""Composed losses by name, dialogs to learn from, and the gradient of a batch of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from learner_jax.batches import Batch, Sequences, rl_batch
from learner_jax.contracts.weights import Trajectory
from learner_jax.models import TokenStats, init_parameters
from learner_jax.settings.learner import (
    AdvantageSettings,
    KLSettings,
    LearnerSettings,
    LossSettings,
    MismatchSettings,
    OptimizerSettings,
    PolicySettings,
    ValueSettings,
)
from learner_jax.training import objective
from learner_jax.training.engine import Engine
from learner_jax.training.objective import StepScalars
from learner_jax.training.train_step import TrainState
from tests.support.tiny_model import TINY
from tests.support.trajectories import make_group

VTRACE = {
    "advantage": AdvantageSettings(estimator="vtrace", discount=0.97, turn_discount=0.9, trace_decay=0.95),
    "policy": PolicySettings(objective="policy_gradient", importance="none"),
    "value": ValueSettings(model="shared"),
}


LOSSES: dict[str, LossSettings] = {
    "grpo": LossSettings(kl=KLSettings(coefficient=0.05)),
    "dr_grpo, constant": LossSettings(
        advantage=AdvantageSettings(estimator="dr_grpo"), reduction="constant", constant_tokens=6
    ),
    "rloo, cispo, k2": LossSettings(
        advantage=AdvantageSettings(estimator="rloo"),
        policy=PolicySettings(objective="cispo", clip_low=0.9, clip_high=2.0),
        kl=KLSettings(coefficient=0.05, estimator="k2"),
    ),
    "reinforce_pp, k1 reward, token mean": LossSettings(
        advantage=AdvantageSettings(estimator="reinforce_pp"),
        kl=KLSettings(coefficient=0.05, estimator="k1", use="reward"),
        reduction="token_mean",
    ),
    "gspo, entropy": LossSettings(policy=PolicySettings(objective="gspo"), entropy_coefficient=0.01),
    "decoupled, corrected": LossSettings(
        policy=PolicySettings(objective="decoupled_ppo", importance_cap=1.5, dual_clip=3.0),
        mismatch=MismatchSettings(truncation=2.0, band=(0.3, 3.0), sequence_band=(0.3, 3.0), veto=1e-3),
        kl=KLSettings(coefficient=0.05, importance_weighted=True),
    ),
    "gae, whitened, clipped values": LossSettings(
        advantage=AdvantageSettings(estimator="gae", whiten=True, trace_decay=0.9, discount=0.95),
        value=ValueSettings(model="separate", clip=0.1),
    ),
    "vtrace by token": LossSettings(**VTRACE),
    "vtrace in ppo": LossSettings(
        advantage=AdvantageSettings(estimator="vtrace", segments="turn"), value=ValueSettings(model="shared")
    ),
    "vtrace by turn": LossSettings(
        **VTRACE | {"advantage": AdvantageSettings(estimator="vtrace", segments="turn", turn_discount=0.9)},
        kl=KLSettings(coefficient=0.05, estimator="k3", use="reward"),
    ),
}


def losses(*in_suite: str) -> list[Any]:
    """All of them, those that are not named in the soak only: compiling is most of the time."""
    return [pytest.param(name, marks=() if name in in_suite else pytest.mark.soak) for name in LOSSES]


def dialog(group_id: str, *, seed: int, size: int = 2, finish: str = "stop") -> list[Trajectory]:
    """Two turns: 2 prompt tokens, an answer, 2 environment tokens, an answer; rewards after each answer."""
    rng = np.random.default_rng(seed)
    group = []
    for trajectory in make_group(group_id, size=size, prompt_tokens=2, answer_tokens=6 + seed % 3, seed=seed):
        length = len(trajectory.tokens)
        first = 2 + rng.integers(1, 3)
        mask = np.arange(length) >= 2
        mask[first : first + 2] = False
        turn = (np.arange(length) >= first).astype(np.int32)
        rewards = np.zeros(length, np.float32)
        rewards[[first - 1, length - 1]] = rng.normal(size=2)
        group.append(
            dataclasses.replace(
                trajectory,
                loss_mask=mask,
                turn=turn,
                rewards=rewards,
                policy_version=np.where(mask, rng.integers(1, 4, length), -1).astype(np.int32),
                behavior_logprobs=np.where(mask, -3.4 - 0.2 * rng.random(length), 0.0).astype(np.float32),
                finish_reason=finish,  # type: ignore[arg-type]
            )
        )
    return group


GROUPS = [dialog(f"run/{i}", seed=i, finish="length" if i == 1 else "stop") for i in range(4)]


def settings(loss: LossSettings, **changes: Any) -> LearnerSettings:
    base = {"steps": 1, "groups_per_step": 4, "sequence_length": 12, "microbatch_rows": 8, "loss": loss}
    return LearnerSettings(**(base | {"optimizer": OptimizerSettings(learning_rate=1e-3)} | changes))


def make_engine(loss: LossSettings, *, devices: int = 1, **changes: Any) -> Engine:
    return Engine(
        settings(loss, **changes),
        TINY,
        objective=objective.reinforcement(loss),
        temperature=1.0,
        devices=jax.devices()[:devices],
    )


@functools.cache
def engine_of(name: str) -> Engine:
    """One engine for each loss, so that its train step is compiled once for all tests."""
    return make_engine(LOSSES[name])


@functools.cache
def whole_gradient(name: str) -> tuple[dict[Any, np.ndarray], dict[str, float]]:
    return gradients(engine_of(name), initial_parameters(), GROUPS)


def reference(rows: Sequences) -> np.ndarray:
    return (-3.4 - 0.1 * np.cos(rows.tokens)).astype(np.float32)


def make_batch(engine: Engine, dialogs: Any, state: TrainState, **changes: Any) -> Batch:
    """The prepared batch of these groups of dialogs; `changes` are of the loss's settings for the host's part."""
    loss = engine.settings.loss.model_copy(update=changes)
    batch, _ = rl_batch(
        dialogs,
        loss,
        sequence_length=engine.settings.sequence_length,
        trained_version=4,
        reference=reference if loss.kl.coefficient else None,
        kl_coefficient=loss.kl.coefficient,
    )
    return engine.statistics.prepared(state.params, engine.planned(batch), current_version=3).batch


@functools.cache
def initial_parameters() -> Any:
    return jax.tree.map(np.asarray, init_parameters(TINY, jax.random.key(0)))


def gradients(engine: Engine, params: Any, groups: Any) -> tuple[dict[Any, np.ndarray], dict[str, float]]:
    """Gradient and metrics of a batch, with a value head that is not zero."""
    state = engine.init_state(params, seed=0)
    weights = dict(state.params)
    if "value" in weights:
        head = np.random.default_rng(0).normal(size=TINY.hidden_size).astype(np.float32)
        weights["value"] = weights["value"] | {"head": {"weight": jnp.asarray(head), "bias": jnp.float32(0.1)}}
    state = dataclasses.replace(state, params=weights)
    total = engine.gradients(state.params, make_batch(engine, groups, state), current_version=3, kl_coefficient=0.05)
    return (
        {path: np.asarray(g) for path, g in flatten_dict(total.grads).items()},
        {name: float(value) for name, value in total.metrics.items()} | {"loss": float(total.loss)},
    )


def relative_difference(a: dict[Any, np.ndarray], b: dict[Any, np.ndarray]) -> float:
    """Of the whole gradient, by its norm: single elements near zero have no relative precision in fp32."""
    norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in b.values()))
    assert norm > 1e-6
    return float(np.sqrt(sum(((a[k].astype(np.float64) - b[k]) ** 2).sum() for k in b)) / norm)


def scalars(coefficient: float = 0.05) -> StepScalars:
    return StepScalars(jnp.int32(3), jnp.int32(3), jnp.float32(coefficient))


def made_up(seed: int = 0) -> tuple[TokenStats, Batch, dict[str, np.ndarray]]:
    """Statistics and a batch of 4 rows of 6 tokens; versions 2 and 3, of which 3 is the current one."""
    rng = np.random.default_rng(seed)
    shape = (4, 6)
    mask = np.arange(6) >= np.array([[1], [2], [1], [3]])
    arrays = {
        "current": -rng.random(shape) * 2,
        "behavior": -rng.random(shape) * 2,
        "trainer": -rng.random(shape) * 2,
        "reference": -rng.random(shape) * 2,
        "advantages": rng.normal(size=(4, 1)) * mask,
        "entropy": rng.random(shape),
        "versions": np.where(mask, np.array([[3], [2], [3], [2]]), -1),
        "mask": mask,
    }
    lengths = mask.sum(axis=1, keepdims=True)
    arrays["weights"] = mask / lengths / 4
    single = {name: x.astype(np.float32) for name, x in arrays.items()}
    stats = TokenStats(jnp.asarray(single["current"]), jnp.asarray(single["entropy"]), jnp.zeros(shape, bool))
    batch = Batch(
        tokens=jnp.zeros(shape, jnp.int32),
        weights=jnp.asarray(single["weights"]),
        advantages=jnp.asarray(single["advantages"]),
        behavior_logprobs=jnp.asarray(single["behavior"]),
        policy_version=jnp.asarray(arrays["versions"], jnp.int32),
        reference_logprobs=jnp.asarray(single["reference"]),
        trainer_logprobs=jnp.asarray(single["trainer"]),
    )
    return stats, batch, arrays


@pytest.fixture(scope="module")
def params() -> Any:
    return initial_parameters()
