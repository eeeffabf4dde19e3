"""How many rows a microbatch has: on one CPU device those of a small model fit a cache."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from learner_jax.contracts import ModelConfig
from learner_jax.hosts import Hosts
from learner_jax.settings import LearnerSettings
from learner_jax.training.placement import Placement
from tests.support.tiny_model import TINY

LARGE = dataclasses.replace(TINY, hidden_size=1024, intermediate_size=4096)


@pytest.mark.parametrize(
    ("model", "num_devices", "cuts", "rows"),
    [(TINY, 1, True, 2), (TINY, 1, False, 24), (TINY, 2, True, 24), (LARGE, 1, True, 24)],
    ids=["small", "rows in pairs", "two devices", "large"],
)
def test_a_small_models_microbatches_are_cut_to_256_slots_on_one_cpu_device(
    model: ModelConfig, num_devices: int, cuts: bool, rows: int
) -> None:
    settings = LearnerSettings.model_validate(
        {"steps": 1, "groups_per_step": 4, "sequence_length": 13, "row_tokens": (64, 128), "microbatch_rows": 24}
    )
    placement = Placement(settings, model, Hosts(), jax.devices()[:num_devices], cuts=cuts)
    assert placement.own_rows == rows
