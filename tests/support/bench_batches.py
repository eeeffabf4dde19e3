"""What the tests of the learner benchmark build on: a tiny model, a ragged batch, and what a right side reports."""

from __future__ import annotations

import dataclasses

import numpy as np

from tools.bench.learner.cases import PaddedBatch, Shape, expected
from tools.bench.learner.sides import Result

TINY = Shape(layers=2, hidden=16, heads=2, kv_heads=1, head_dim=8, intermediate=24, vocab=37)
GOOD = Result(step_cpu_ms=200.0, step_ms=250.0, loss=0.0, kl=0.0, grad_norm=1.0, first_step_s=3.0, maxrss_mb=900.0)


def first_step(batch: PaddedBatch, name: str, **changes: float) -> Result:
    """What a side that computes correctly reports."""
    right = expected(batch)
    kl = right.kl_of_answers if name == "weir" else right.kl_of_tokens
    return dataclasses.replace(GOOD, **({"loss": right.loss, "kl": kl} | changes))


def small_batch(prompt: int = 6) -> PaddedBatch:
    """Ragged, padded more than needed, with noise that reaches beyond the clip."""
    rng = np.random.default_rng(3)
    num_prompt, num_answer = np.arange(8) % 3 + 1, np.arange(8) % 5 + 1
    prompt_mask = (np.arange(prompt) >= prompt - num_prompt[:, None]).astype(np.int32)
    answer_mask = (np.arange(9) < num_answer[:, None]).astype(np.int32)
    noise = 0.3 * rng.standard_normal((2, 8, 9)).astype(np.float32)
    return PaddedBatch(
        prompt_ids=(rng.integers(1, 37, (8, prompt)) * prompt_mask).astype(np.int32),
        prompt_mask=prompt_mask,
        completion_ids=(rng.integers(1, 37, (8, 9)) * answer_mask).astype(np.int32),
        completion_mask=answer_mask,
        advantages=rng.standard_normal(8).astype(np.float32),
        old_noise=noise[0],
        ref_noise=noise[1],
    )
