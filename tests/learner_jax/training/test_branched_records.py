"""The train step on records with branches: loss and gradient against float64 NumPy, written from the records alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.batches import Batch, rl_batch
from learner_jax.contracts.weights import Trajectory
from learner_jax.models import TokenStats
from learner_jax.settings.learner import KLSettings, LossSettings, PolicySettings
from learner_jax.training import objective
from tests.support.branched import BRANCHES, branched_group
from tests.support.composed_losses import engine_of, make_batch, reference, scalars
from tests.support.composed_losses import params as params

REWARDS, COUNTS = [1.0, 0.0, 0.5], [3, 1, 2]
CLIP, KL = 0.2, 0.1


def loss_settings(reduction: str) -> LossSettings:
    return LossSettings(
        policy=PolicySettings(objective="ppo", clip_low=CLIP, clip_high=CLIP),
        kl=KLSettings(coefficient=KL, estimator="k3"),
        reduction=reduction,  # type: ignore[arg-type]
    )


def batch_of(group: list[Trajectory], loss: LossSettings) -> Batch:
    batch, _ = rl_batch([group], loss, sequence_length=8, trained_version=4, reference=reference, kl_coefficient=KL)
    return batch


def oracle(group: list[Trajectory], current: np.ndarray, reduction: str) -> tuple[float, np.ndarray]:
    """(loss, gradient with respect to the current log-probs), float64.

    PPO's clipped surrogate (arXiv 1707.06347, equation 7) with GRPO's advantages (arXiv 2402.03300, section 4.1.2) and
    the k3 estimate of the KL (its equation 4). A row is a branch; each sampled token counts in one of them.
    """
    rewards = np.array([trajectory.rewards.sum() for trajectory in group], np.float64)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    num_rows, num_tokens = sum(COUNTS), sum(int(trajectory.loss_mask.sum()) for trajectory in group)
    loss, gradient, row = 0.0, np.zeros(current.shape), 0
    for trajectory, advantage, count in zip(group, advantages, COUNTS, strict=True):
        for branch in range(count):
            mask = np.array(BRANCHES[min(branch, 1)], bool)
            begin = branch * len(mask)
            for t in np.flatnonzero(mask):
                behavior = float(trajectory.behavior_logprobs[begin + t])
                frozen = -3.4 - 0.1 * np.cos(float(trajectory.tokens[begin + t]))
                weight = 1 / num_tokens if reduction == "token_mean" else 1 / (num_rows * mask.sum())
                ratio, gap = np.exp(current[row, t] - behavior), frozen - current[row, t]
                kept, cut = ratio * advantage, np.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage
                loss += weight * (-min(kept, cut) + KL * (np.exp(gap) - 1 - gap))
                slope = -kept if kept <= cut else 0.0
                gradient[row, t] += weight * (slope + KL * (1 - np.exp(gap)))
            row += 1
    return loss, gradient


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean"])
def test_loss_and_gradient_are_those_of_the_branches(reduction: str) -> None:
    group, loss = branched_group(REWARDS, COUNTS), loss_settings(reduction)
    batch = batch_of(group, loss)
    rng = np.random.default_rng(0)
    current = np.asarray(batch.behavior_logprobs, np.float64) + rng.uniform(-0.5, 0.5, batch.tokens.shape)
    current = current.astype(np.float32).astype(np.float64)
    stats = TokenStats(jnp.asarray(current, jnp.float32), jnp.zeros(current.shape), jnp.zeros(current.shape, bool))
    chosen = objective.reinforcement(loss)

    def function(logprobs: jax.Array) -> jax.Array:
        return chosen(dataclasses.replace(stats, logprobs=logprobs), batch, scalars(KL))[0]

    value, gradient = jax.jit(jax.value_and_grad(function))(stats.logprobs)
    expected, slopes = oracle(group, current, reduction)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(np.asarray(gradient), slopes, rtol=1e-4, atol=1e-7)
    assert np.count_nonzero(slopes) == sum(int(trajectory.loss_mask.sum()) for trajectory in group)


def test_the_model_s_gradient_is_the_slope_of_that_loss(params: Any) -> None:
    """Through the model, along the gradient itself: a central difference of the loss has its norm."""
    engine, group = engine_of("grpo"), branched_group(REWARDS, COUNTS)
    batch = make_batch(engine, [group], engine.init_state(params, seed=0))

    def at(shift: float, direction: Any = None) -> Any:
        moved = params if direction is None else jax.tree.map(lambda p, d: p + shift * d, params, direction)
        return engine.gradients(engine.init_state(moved, seed=0).params, batch, current_version=3, kl_coefficient=0.05)

    grads = jax.tree.map(np.asarray, at(0.0).grads)
    norm = float(np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(grads))))
    unit = jax.tree.map(lambda leaf: leaf / norm, grads)
    difference = (float(at(0.01, unit).loss) - float(at(-0.01, unit).loss)) / 0.02
    assert difference == pytest.approx(norm, rel=0.02)
