"""KL as a part of the reward, for estimators without values: sampled tokens count, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from learner_jax.batches import Sequences, rl_batch
from learner_jax.settings import AdvantageSettings, KLSettings, LossSettings
from tests.support.trajectories import make_group

COEFFICIENT, LENGTH = 0.3, 12


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_an_answer_pays_for_its_own_tokens_alone(estimator: str) -> None:
    """Against float64: log-ratios as in Schulman, "Approximating KL divergence" (2020); advantages are r - mean(r)."""
    groups = [make_group(f"run/{i}", size=3, seed=i, answer_tokens=3 + i, rewards=[0.0, 1.0, 0.5]) for i in range(2)]
    answers = [answer for group in groups for answer in group]
    drawn = -np.random.default_rng(9).random((len(answers), LENGTH)).astype(np.float32)

    def reference(rows: Sequences) -> np.ndarray:
        return drawn  # also of prompts and of what pads

    settings = LossSettings(
        advantage=AdvantageSettings(estimator="dr_grpo"),
        kl=KLSettings(coefficient=COEFFICIENT, use="reward", estimator=estimator),
    )
    batch, _ = rl_batch(
        groups,
        settings,
        sequence_length=LENGTH,
        trained_version=1,
        minibatches=1,
        reference=reference,
        kl_coefficient=COEFFICIENT,
    )
    paid = []
    for answer, of_reference in zip(answers, drawn.astype(np.float64), strict=True):
        log_ratio = (answer.behavior_logprobs.astype(np.float64) - of_reference[: len(answer.tokens)])[answer.loss_mask]
        kl = {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": np.expm1(-log_ratio) + log_ratio}[estimator]
        paid.append(float(answer.rewards.sum()) - COEFFICIENT * kl.sum())
    expected = (np.reshape(paid, (2, 3)) - np.mean(np.reshape(paid, (2, 3)), axis=1, keepdims=True)).ravel()
    for row, answer, advantage in zip(np.asarray(batch.advantages), answers, expected, strict=True):
        want = np.zeros(LENGTH)
        want[: len(answer.tokens)][answer.loss_mask] = advantage
        np.testing.assert_allclose(row, want, rtol=1e-5, atol=1e-6)
