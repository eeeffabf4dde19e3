"""The optimizer: AdamW on fp32 master weights, clipped by global norm, with moments of three sizes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from learner_jax.settings import OptimizerSettings

#: Smallest dimension whose second moment is kept by row and column.
_FACTORED_FROM = 128


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) behind global-norm clipping (arXiv 1211.5063), with linear warm-up.

    `moments` of "bfloat16" keeps the first moment in bf16. The second one stays fp32: at beta2 = 0.999 its changes are
    below what bf16 resolves. "factored" keeps of the second moment the means over rows and columns only (Adafactor,
    arXiv 1804.04235, section 3), for matrices of at least 128 x 128; the first moment is bf16 and averages the
    normalised updates.
    """
    first = settings.learning_rate / max(settings.warmup_steps, 1)  # not 0: the first step should move something
    schedule = (
        optax.schedules.warmup_constant_schedule(first, settings.learning_rate, settings.warmup_steps - 1)
        if settings.warmup_steps > 1
        else optax.schedules.constant_schedule(settings.learning_rate)  # the state has one form, warm-up or not
    )
    clip = optax.clip_by_global_norm(settings.max_grad_norm)
    if settings.moments == "factored":
        return optax.chain(
            clip,
            optax.scale_by_factored_rms(
                decay_rate=settings.beta2,
                decay_rate_fn=_unbiased_decay,
                min_dim_size_to_factor=_FACTORED_FROM,
                epsilon=settings.eps**2,
            ),
            optax.ema(settings.beta1, debias=True, accumulator_dtype=jnp.bfloat16),
            optax.add_decayed_weights(settings.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
    return optax.chain(
        clip,
        optax.adamw(
            schedule,
            b1=settings.beta1,
            b2=settings.beta2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            mu_dtype=jnp.bfloat16 if settings.moments == "bfloat16" else jnp.float32,
        ),
    )


def _unbiased_decay(step: Any, beta2: Any) -> Any:
    """beta2 (1 - beta2^(t-1)) / (1 - beta2^t): bias correction within the average (arXiv 1804.04235, section 7.1)."""
    t = step + 1.0
    return beta2 * (1.0 - beta2 ** (t - 1.0)) / (1.0 - beta2**t)
