"""Which arrays a train step takes under which settings, known before there is a batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from learner_jax.batches.batch import abstract_batch
from learner_jax.settings.learner import LossSettings

ALWAYS = {"tokens", "weights", "advantages", "behavior_logprobs", "policy_version", "layout"}
VALUES = {"value": {"model": "shared"}}
GAE, VTRACE = ({"advantage": {"estimator": estimator}} | VALUES for estimator in ("gae", "vtrace"))
AHEAD = {"old_values", "value_targets"}


@pytest.mark.parametrize(
    ("settings", "minibatches", "more"),
    [
        ({}, 1, set()),
        ({}, 2, {"proximal_logprobs"}),
        ({"kl": {"coefficient": 0.1}}, 1, {"reference_logprobs"}),
        ({"mismatch": {"lagging": True, "truncation": 2.0}}, 1, {"trainer_logprobs"}),
        (GAE, 1, {"episodes"}),
        (GAE, 2, {"episodes", "proximal_logprobs"} | AHEAD),
        ({"advantage": {"estimator": "gae", "whiten": True}} | VALUES, 1, {"episodes"} | AHEAD),
        (GAE | {"value": {"model": "separate", "clip": 0.2}}, 1, {"episodes"} | AHEAD),
        (VTRACE, 1, {"episodes"}),
        (VTRACE, 2, {"episodes", "proximal_logprobs"}),
    ],
)
def test_a_step_takes_what_its_settings_need_and_nothing_else(
    settings: dict[str, Any], minibatches: int, more: set[str]
) -> None:
    batch = abstract_batch(LossSettings.model_validate(settings), num_rows=3, row_tokens=8, minibatches=minibatches)
    assert {name for name in batch.__dataclass_fields__ if getattr(batch, name) is not None} == ALWAYS | more
    assert {leaf.shape for leaf in jax.tree.leaves(batch)} == {(3, 8)}
    ints = {"tokens", "policy_version"}
    for name in ALWAYS - {"layout"} | more - {"episodes"}:
        assert getattr(batch, name).dtype == (np.int32 if name in ints else np.float32), name
    assert all(leaf.dtype == np.int32 for leaf in jax.tree.leaves(batch.layout))
