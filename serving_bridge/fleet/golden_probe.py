"""The proof of a replica's weights: its log-probs of the golden prompts against the learner's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from learner_jax.contracts import GoldenPrompt
from serving_bridge.settings import ServingSettings

#: Largest golden-prompt log-prob difference accepted, nats, by serving dtype, where serving.probe_tolerance is unset.
#: Sampler and learner add up in different orders: on the CPU up to 2e-5 apart in float32 (TF32 on GPUs: near 1e-3) and
#: 0.16 in bfloat16. A tensor that is transposed or of other weights moves some log-prob by 0.33 (a query projection of
#: twelve) to 9 (the embedding). What one step changes in one tensor is below either tolerance: that all tensors arrived
#: is for hashes and loaders to check.
PROBE_TOLERANCE: Mapping[str, float] = MappingProxyType({"float32": 1e-3, "bfloat16": 0.3})


def largest_difference(golden: Sequence[GoldenPrompt], found: Sequence[np.ndarray]) -> float:
    """Largest absolute difference between a replica's and the learner's log-probs of the golden prompts, nats.

    Args:
      found: float32[P-1] of each prompt.
    """
    pairs = zip(golden, found, strict=True)
    # NumPy's maximum keeps a NaN, wherever it is.
    return float(np.max([np.abs(got - np.asarray(prompt.logprobs, np.float32)).max() for prompt, got in pairs]))


def probe_tolerance(settings: ServingSettings) -> float:
    """The golden-prompt log-prob difference that a round accepts, nats."""
    return PROBE_TOLERANCE[settings.dtype] if settings.probe_tolerance is None else settings.probe_tolerance
