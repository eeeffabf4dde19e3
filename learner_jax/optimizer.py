"""The optimizer: AdamW on fp32 master weights, clipped by global norm."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from learner_jax.config import OptimizerSettings


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) behind global-norm clipping (arXiv 1211.5063), with linear warm-up."""
    first = settings.learning_rate / max(settings.warmup_steps, 1)  # not 0: the first step should move something
    schedule = (
        optax.schedules.warmup_constant_schedule(first, settings.learning_rate, settings.warmup_steps - 1)
        if settings.warmup_steps > 1
        else optax.schedules.constant_schedule(settings.learning_rate)  # the state has one form, warm-up or not
    )
    return optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(
            schedule,
            b1=settings.beta1,
            b2=settings.beta2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            mu_dtype=jnp.float32,
        ),
    )
