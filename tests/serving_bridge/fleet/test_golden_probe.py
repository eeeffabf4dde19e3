"""The proof of weights: how far log-probs may differ, and that NaN is no pass."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from learner_jax.contracts.weights import GoldenPrompt
from serving_bridge.fleet.golden_probe import PROBE_TOLERANCE, largest_difference, probe_tolerance
from tests.support.weight_world import SETTINGS


def found(*values: list[float]) -> list[np.ndarray]:
    return [np.array(of_prompt, np.float32) for of_prompt in values]


def test_a_probe_that_gives_nan_anywhere_is_no_pass():
    golden = [GoldenPrompt([1, 2], [-1.0]), GoldenPrompt([1, 2, 3], [-1.0, -1.0]), GoldenPrompt([1, 2], [-1.0])]
    assert np.isnan(largest_difference(golden, found([-1.0], [-1.0, np.nan], [-1.0])))
    assert largest_difference(golden[:1], found([-1.0])) == 0.0


def test_the_largest_difference_counts_wherever_it_is_and_whichever_way():
    golden = [GoldenPrompt([1, 2], [-1.0]), GoldenPrompt([1, 2, 3], [-1.0, -2.0]), GoldenPrompt([1] * 4, [-1.0] * 3)]
    answers = found([-1.25], [-1.0, -2.5], [-1.0, -0.25, -3.0])
    for number, largest in ((1, 0.25), (2, 0.5), (3, 2.0)):
        assert largest_difference(golden[:number], answers[:number]) == largest
    with pytest.raises(ValueError, match="shorter"):
        largest_difference(golden, answers[:2])


def test_the_tolerance_is_that_of_the_dtype_unless_it_is_set():
    dtypes = get_args(type(SETTINGS).model_fields["dtype"].annotation)
    assert set(PROBE_TOLERANCE) == set(dtypes)
    for dtype in dtypes:
        by_dtype = SETTINGS.model_copy(update={"dtype": dtype, "probe_tolerance": None})
        assert probe_tolerance(by_dtype) == PROBE_TOLERANCE[dtype]
        assert probe_tolerance(by_dtype.model_copy(update={"probe_tolerance": 0.7})) == 0.7
