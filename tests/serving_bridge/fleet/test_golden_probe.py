"""The proof of weights: how far log-probs may differ, and that NaN is no pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from learner_jax.contracts.weights import GoldenPrompt
from serving_bridge.fleet import golden_probe
from serving_bridge.fleet.golden_probe import PROBE_TOLERANCE
from tests.support.weight_world import SETTINGS


def test_a_probe_that_gives_nan_anywhere_is_no_pass():
    class Client:
        def probe_ids(self, count: int) -> list[str]:
            return [str(index) for index in range(count)]

        async def prompt_logprobs(self, tokens: Sequence[int], **_: Any) -> np.ndarray:
            return np.full(len(tokens) - 1, np.nan if len(tokens) == 3 else -1.0, np.float32)

    golden = [GoldenPrompt([1, 2], [-1.0]), GoldenPrompt([1, 2, 3], [-1.0, -1.0]), GoldenPrompt([1, 2], [-1.0])]
    assert np.isnan(asyncio.run(golden_probe.probe(Client(), golden, 1.0)))  # type: ignore[arg-type]
    assert asyncio.run(golden_probe.probe(Client(), golden[:1], 1.0)) == 0.0  # type: ignore[arg-type]


def test_the_largest_difference_counts_wherever_it_is_and_whichever_way():
    answers = {2: [-1.25], 3: [-1.0, -2.5], 4: [-1.0, -0.25, -3.0]}
    golden = [GoldenPrompt([1, 2], [-1.0]), GoldenPrompt([1, 2, 3], [-1.0, -2.0]), GoldenPrompt([1] * 4, [-1.0] * 3)]

    class Client:
        def probe_ids(self, count: int) -> list[str]:
            return [f"id {index} of {count}" for index in range(count)]

        async def prompt_logprobs(self, tokens: Sequence[int], **asked: Any) -> np.ndarray:
            assert asked == {"timeout_s": 7.0, "priority": -1, "request_id": f"id {len(tokens) - 2} of {number}"}
            return np.array(answers[len(tokens)], np.float32)

    for number, largest in ((1, 0.25), (2, 0.5), (3, 2.0)):
        assert asyncio.run(golden_probe.probe(Client(), golden[:number], 7.0)) == largest  # type: ignore[arg-type]


def test_the_tolerance_is_that_of_the_dtype_unless_it_is_set():
    dtypes = get_args(type(SETTINGS).model_fields["dtype"].annotation)
    assert set(PROBE_TOLERANCE) == set(dtypes)
    for dtype in dtypes:
        by_dtype = SETTINGS.model_copy(update={"dtype": dtype, "probe_tolerance": None})
        assert golden_probe.probe_tolerance(by_dtype) == PROBE_TOLERANCE[dtype]
        assert golden_probe.probe_tolerance(by_dtype.model_copy(update={"probe_tolerance": 0.7})) == 0.7
