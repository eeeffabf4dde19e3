"""One optimizer step as one jitted, donated, fixed-shape function; the same for every objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from learner_jax.batch import Batch
from learner_jax.corrections import effective_sample_share
from learner_jax.model import TokenStats
from learner_jax.objective import Metrics, Objective, StepScalars

Params = Any
#: (parameters, tokens [B, T]) -> statistics of every token
TokenModel = Callable[[Params, Array], TokenStats]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that an optimizer step changes.

    Attributes:
      params: fp32 master weights.
      step: optimizer steps taken, skipped ones included.
      key: random key of the run; folded with `step` where randomness is needed.
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]
    key: Array


def init_state(params: Params, optimizer: optax.GradientTransformation, *, seed: int) -> TrainState:
    return TrainState(
        params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(seed))
    )


def make_train_step(
    token_model: TokenModel,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    microbatch_rows: int,
    effective_sample_exponent: float = 0.0,
) -> Callable[[TrainState, Batch, StepScalars], tuple[TrainState, Metrics]]:
    """Builds `step(state, batch, scalars) -> (state, metrics)`, to be jitted with `state` donated.

    Gradients are summed over microbatches of `microbatch_rows` rows. The batch's weights carry the global
    normaliser, so the result does not depend on the split. A step whose loss or gradient is not finite leaves
    parameters and optimizer untouched and says so in `metrics["skipped"]`; so does one without any weight, in
    `metrics["empty"]`. The update is scaled by (effective sample size / tokens) ** `effective_sample_exponent`.

    Metrics are those of the objective, and the norm of the gradient.
    """

    def microbatch_loss(params: Params, batch: Batch, scalars: StepScalars) -> tuple[Array, Metrics]:
        loss, metrics = objective(token_model(params, batch.tokens), batch, scalars)
        return loss, jax.lax.stop_gradient(metrics)

    def gradients(params: Params, batch: Batch, scalars: StepScalars) -> tuple[Array, Metrics, Params]:
        def one(microbatch: Batch) -> tuple[Array, Metrics, Params]:
            (loss, metrics), grads = jax.value_and_grad(microbatch_loss, has_aux=True)(params, microbatch, scalars)
            return loss, metrics, grads

        rows = batch.tokens.shape[0]
        if rows == microbatch_rows:
            return one(batch)
        split = jax.tree.map(lambda x: x.reshape(rows // microbatch_rows, microbatch_rows, *x.shape[1:]), batch)

        def accumulate(total: Any, microbatch: Batch) -> tuple[Any, None]:
            loss, metrics, grads = total
            more_loss, more_metrics, more_grads = one(microbatch)
            return (loss + more_loss, _combined(metrics, more_metrics), jax.tree.map(jnp.add, grads, more_grads)), None

        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], split))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(accumulate, zeros, split)[0]

    def step(state: TrainState, batch: Batch, scalars: StepScalars) -> tuple[TrainState, Metrics]:
        loss, metrics, grads = gradients(state.params, batch, scalars)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        if "weight_sum" in metrics:
            share = effective_sample_share(
                metrics.pop("weight_sum"), metrics.pop("weight_square_sum"), metrics.pop("learned_tokens")
            )
            metrics["effective_sample_share"] = share
            if effective_sample_exponent > 0:
                updates = jax.tree.map(lambda u: u * share**effective_sample_exponent, updates)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        empty = ~jnp.any(batch.weights != 0)

        def keep_if_sound(new: Array, old: Array) -> Array:
            return jnp.where(finite & ~empty, new, old)

        new_state = TrainState(
            params=jax.tree.map(keep_if_sound, params, state.params),
            opt_state=jax.tree.map(keep_if_sound, opt_state, state.opt_state),
            step=state.step + 1,
            key=state.key,
        )
        flags = {"skipped": 1.0 - finite, "empty": 1.0 * empty}
        return new_state, metrics | {"loss": loss, "grad_norm": grad_norm} | flags

    return step


def _combined(total: Metrics, more: Metrics) -> Metrics:
    """Shares of a metric add up; of one named `_max`, the largest counts (all are at least 0)."""
    return {
        name: jnp.maximum(value, more[name]) if name.endswith("_max") else value + more[name]
        for name, value in total.items()
    }
