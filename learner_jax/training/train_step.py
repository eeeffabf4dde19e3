"""One optimizer step as jitted, fixed-shape functions: gradients of one microbatch after another, then the update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from learner_jax.batches import Batch
from learner_jax.losses import effective_sample_share
from learner_jax.training.objective import Metrics, Objective, StepScalars

Params = Any


class MicrobatchLoss(Protocol):
    """The loss of a model on one microbatch of packed rows: its share of the batch's loss and of each metric."""

    def __call__(
        self, params: Params, batch: Batch, scalars: StepScalars, objective: Objective
    ) -> tuple[Array, Metrics]: ...


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gradients:
    """What microbatches add up to."""

    loss: Array
    metrics: Metrics
    grads: Params


def init_state(params: Params, optimizer: optax.GradientTransformation, *, seed: int) -> TrainState:
    return TrainState(
        params, optimizer.init(params), jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(seed))
    )


def make_gradients(
    microbatch_loss: MicrobatchLoss, objective: Objective
) -> Callable[[Params, Batch, StepScalars], Gradients]:
    """Builds the function from parameters and one microbatch to its share of loss, metrics and gradients.

    The batch's weights carry the global normaliser, so shares are plain sums and do not depend on how a batch is cut.
    """

    def loss_and_metrics(params: Params, batch: Batch, scalars: StepScalars) -> tuple[Array, Metrics]:
        loss, metrics = microbatch_loss(params, batch, scalars, objective)
        return loss, jax.lax.stop_gradient(metrics | {"weight_total": jnp.sum(jnp.abs(batch.weights))})

    def gradients(params: Params, batch: Batch, scalars: StepScalars) -> Gradients:
        (loss, metrics), grads = jax.value_and_grad(loss_and_metrics, has_aux=True)(params, batch, scalars)
        return Gradients(loss, metrics, grads)

    return gradients


def add(total: Gradients, more: Gradients) -> Gradients:
    """Shares add up; of a metric named `_max`, the largest counts (all are at least 0)."""
    metrics = {
        name: jnp.maximum(value, more.metrics[name]) if name.endswith("_max") else value + more.metrics[name]
        for name, value in total.metrics.items()
    }
    return Gradients(total.loss + more.loss, metrics, jax.tree.map(jnp.add, total.grads, more.grads))


def make_update(
    optimizer: optax.GradientTransformation, *, effective_sample_exponent: float = 0.0
) -> Callable[[TrainState, Gradients], tuple[TrainState, Metrics]]:
    """Builds `update(state, gradients of the whole batch) -> (state, metrics)`, to be jitted with `state` donated.

    A step whose loss or gradient is not finite leaves parameters and optimizer untouched and says so in
    `metrics["skipped"]`; so does one without any weight, in `metrics["empty"]`. The update is scaled by (effective
    sample size / tokens) ** `effective_sample_exponent`. Metrics are those of the objective, and the gradient's norm.
    """

    def update(state: TrainState, total: Gradients) -> tuple[TrainState, Metrics]:
        metrics = dict(total.metrics)
        grad_norm = optax.tree.norm(total.grads)
        updates, opt_state = optimizer.update(total.grads, state.opt_state, state.params)
        if "weight_sum" in metrics:
            share = effective_sample_share(
                metrics.pop("weight_sum"), metrics.pop("weight_square_sum"), metrics.pop("learned_tokens")
            )
            metrics["effective_sample_share"] = share
            if effective_sample_exponent > 0:
                updates = jax.tree.map(lambda u: u * share**effective_sample_exponent, updates)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(total.loss) & jnp.isfinite(grad_norm)
        empty = metrics.pop("weight_total") == 0

        def keep_if_sound(new: Array, old: Array) -> Array:
            return jnp.where(finite & ~empty, new, old)

        new_state = TrainState(
            params=jax.tree.map(keep_if_sound, params, state.params),
            opt_state=jax.tree.map(keep_if_sound, opt_state, state.opt_state),
            step=state.step + 1,
            key=state.key,
        )
        flags = {"skipped": 1.0 - finite, "empty": 1.0 * empty}
        return new_state, metrics | {"loss": total.loss, "grad_norm": grad_norm} | flags

    return update
