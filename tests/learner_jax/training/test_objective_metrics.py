"""What an objective measures beside its loss, of one row of three tokens that are learned."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.batches import Batch
from learner_jax.models import TokenStats
from learner_jax.settings import LossSettings
from learner_jax.training.objective import StepScalars, reinforcement

LOGPROBS, BEHAVIOR = np.array([0.0, -1.0, -2.0, -0.5, 0.0]), np.array([0.0, -1.2, -1.5, -0.5, 0.0])
REFERENCE, ENTROPY = np.array([0.0, -0.7, -2.5, -0.5, 0.0]), np.array([9.0, 0.3, 0.2, 0.1, 9.0])
WEIGHTS = np.array([0.0, 0.5, 0.25, 0.25, 0.0])


def measured(settings: dict[str, Any], *, reference: bool) -> dict[str, float]:
    row = {name: jnp.asarray(x[None], jnp.float32) for name, x in (("l", LOGPROBS), ("b", BEHAVIOR), ("w", WEIGHTS))}
    batch = Batch(
        tokens=jnp.zeros((1, 5), jnp.int32),
        weights=row["w"],
        advantages=jnp.ones((1, 5), jnp.float32),
        behavior_logprobs=row["b"],
        policy_version=jnp.full((1, 5), 3, jnp.int32),
        reference_logprobs=jnp.asarray(REFERENCE[None], jnp.float32) if reference else None,
    )
    stats = TokenStats(row["l"], jnp.asarray(ENTROPY[None], jnp.float32))
    scalars = StepScalars(jnp.int32(3), jnp.int32(3), jnp.float32(0.5))
    objective = reinforcement(LossSettings.model_validate(settings))
    loss, metrics = objective(stats, batch, scalars)
    return {name: float(value) for name, value in metrics.items()} | {"loss": float(loss)}


@pytest.mark.parametrize("use", ["loss", "reward"])
def test_the_distance_from_the_reference_is_measured_whatever_it_is_used_for(use: str) -> None:
    """exp(d) - 1 - d of d = reference - policy, which is never negative (k3 of Schulman's note on KL estimators)."""
    d = (REFERENCE - LOGPROBS) * (WEIGHTS > 0)
    found = measured({"kl": {"coefficient": 0.5, "use": use}}, reference=True)
    assert found["kl"] == pytest.approx(float(((np.exp(d) - 1 - d) * WEIGHTS).sum()), rel=1e-5)
    assert "kl" not in measured({}, reference=False)


def test_entropy_and_ratio_are_means_over_what_is_learned() -> None:
    found = measured({}, reference=False)
    assert found["entropy"] == pytest.approx(float((ENTROPY * WEIGHTS).sum()))
    assert found["ratio"] == pytest.approx(float((np.exp(LOGPROBS - BEHAVIOR) * WEIGHTS).sum()))
    assert found["mismatch_max"] == pytest.approx(0.5)
    assert found["mismatch_sum"] == pytest.approx(0.7)
    assert (found["mismatch_tokens"], found["learned_tokens"]) == (3, 3)
