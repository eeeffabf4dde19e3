"""One optimizer step as one jitted, donated, fixed-shape function; the same for RL and for supervised starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from learner_jax import losses
from learner_jax.batch import Batch
from learner_jax.config import LossSettings
from learner_jax.model import TokenStats

Params = Any
Metrics = dict[str, Array]
#: (statistics under the current weights, batch) -> (loss of every token [B, T], further values per token [B, T])
Objective = Callable[[TokenStats, Batch], tuple[Array, Metrics]]
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


def grpo_objective(settings: LossSettings) -> Objective:
    """GRPO's token loss: clipped surrogate plus `kl_coefficient` x k3 (arXiv 2402.03300, equation 3)."""

    def objective(stats: TokenStats, batch: Batch) -> tuple[Array, Metrics]:
        bounds = {"clip_low": settings.clip_low, "clip_high": settings.clip_high}
        surrogate = jax.vmap(lambda p, b, a: losses.clipped_surrogate(p, b, a, **bounds))
        clipped = jax.vmap(lambda p, b, a: losses.is_clipped(p, b, a, **bounds))
        token_loss = surrogate(stats.logprobs, batch.behavior_logprobs, batch.advantages)
        values = {"clip_fraction": clipped(stats.logprobs, batch.behavior_logprobs, batch.advantages)}
        if settings.kl_coefficient > 0:
            kl = jax.vmap(losses.k3_kl)(stats.logprobs, batch.reference_logprobs)
            token_loss = token_loss + settings.kl_coefficient * kl
            values["kl"] = kl
        return token_loss, values

    return objective


def supervised_objective(stats: TokenStats, batch: Batch) -> tuple[Array, Metrics]:
    """Cross-entropy of the target tokens."""
    return losses.cross_entropy(stats.logprobs), {}


def make_train_step(
    token_model: TokenModel,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    microbatch_rows: int,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Builds `step(state, batch, current_version) -> (state, metrics)`, to be jitted with `state` donated.

    Gradients are summed over microbatches of `microbatch_rows` rows. The batch's weights carry the global
    normaliser, so the result does not depend on the split. A step whose loss or gradient is not finite leaves
    parameters and optimizer untouched and says so in `metrics["skipped"]`.

    Metrics are means weighted like the loss, except `grad_norm`, and the three `mismatch_*` sums over tokens that
    `current_version` itself sampled: absolute difference, its maximum, and the number of such tokens.
    """

    def microbatch_loss(params: Params, batch: Batch, current_version: Array) -> tuple[Array, Metrics]:
        stats = token_model(params, batch.tokens)
        token_loss, values = objective(stats, batch)
        values = values | {"entropy": stats.entropy}
        metrics = {name: losses.masked_sum(value, batch.weights) for name, value in values.items()}
        metrics |= _mismatch(stats.logprobs, batch, current_version)
        return losses.masked_sum(token_loss, batch.weights), jax.lax.stop_gradient(metrics)

    def gradients(params: Params, batch: Batch, current_version: Array) -> tuple[Array, Metrics, Params]:
        def one(microbatch: Batch) -> tuple[Array, Metrics, Params]:
            grad = jax.value_and_grad(microbatch_loss, has_aux=True)
            (loss, metrics), grads = grad(params, microbatch, current_version)
            return loss, metrics, grads

        rows = batch.tokens.shape[0]
        if rows == microbatch_rows:
            return one(batch)
        split = jax.tree.map(lambda x: x.reshape(rows // microbatch_rows, microbatch_rows, *x.shape[1:]), batch)

        def accumulate(total: Any, microbatch: Batch) -> tuple[Any, None]:
            loss, metrics, grads = one(microbatch)
            largest = jnp.maximum(total[1]["mismatch_max"], metrics["mismatch_max"])
            summed = jax.tree.map(jnp.add, total, (loss, metrics, grads))
            summed[1]["mismatch_max"] = largest
            return summed, None

        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], split))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(accumulate, zeros, split)[0]

    def step(state: TrainState, batch: Batch, current_version: Array) -> tuple[TrainState, Metrics]:
        loss, metrics, grads = gradients(state.params, batch, current_version)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def keep_if_sound(new: Array, old: Array) -> Array:
            return jnp.where(sound, new, old)

        new_state = TrainState(
            params=jax.tree.map(keep_if_sound, params, state.params),
            opt_state=jax.tree.map(keep_if_sound, opt_state, state.opt_state),
            step=state.step + 1,
            key=state.key,
        )
        return new_state, metrics | {"loss": loss, "grad_norm": grad_norm, "skipped": 1.0 - sound}

    return step


def _mismatch(logprobs: Float[Array, "B T"], batch: Batch, current_version: Array) -> Metrics:
    sampled_now = (batch.policy_version == current_version) & (batch.weights > 0)
    difference = jnp.where(sampled_now, jnp.abs(logprobs - batch.behavior_logprobs), 0.0)
    return {
        "mismatch_sum": jnp.sum(difference),
        "mismatch_max": jnp.max(difference),
        "mismatch_tokens": jnp.sum(sampled_now.astype(jnp.float32)),
    }
