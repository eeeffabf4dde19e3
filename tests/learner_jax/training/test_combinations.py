"""Combinations of loss settings that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from learner_jax.settings.learner import (
    LossSettings,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl": {"coefficient": 0.1, "estimator": "k1"}}, "k1 as a loss term has no effect.*score function"),
        ({"advantage": {"estimator": "gae"}}, r"gae needs a value function: set value\.model"),
        ({"value": {"model": "shared"}}, "estimator grpo uses no values"),
        ({"kl": {"target": 0.1}}, r"target needs the reference's log-probs: set kl\.coefficient"),
        ({"mismatch": {"band": [1.5, 2.0]}}, r"band is \[1\.5, 2\.0\], expected \[low, high\] with"),
        ({"mismatch": {"lagging": True}}, "lagging recomputes log-probs for corrections, but none is set"),
        ({"reduction": "constant"}, "set constant_tokens"),
        ({"policy": {"objective": "cispo", "dual_clip": 3.0}}, "dual_clip is for ppo and decoupled_ppo, not cispo"),
        ({"advantage": {"whiten": True}}, "whiten is for gae"),
        (
            {"advantage": {"estimator": "reinforce_pp"}, "groups": {"zero_variance": "drop"}},
            "drop.* is for estimators that compare answers within a group: reinforce_pp learns",
        ),
        ({"kl": {"coefficient": 1, "use": "reward", "importance_weighted": True}}, "importance_weighted is for use"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_and_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossSettings.model_validate(changes)
