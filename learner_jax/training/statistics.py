"""Statistics of sequences on the host, and what a step must know of its whole batch before the first gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from learner_jax.batches import Batch, Lengths, Packing
from learner_jax.losses import ADVANTAGE_EPS
from learner_jax.models import Layout, TokenStats, sharding
from learner_jax.settings import LossSettings
from learner_jax.training.microbatches import Microbatches, PlannedBatch
from learner_jax.training.objective import StepScalars, before, episode_targets
from learner_jax.training.packed_model import PackedModel
from learner_jax.training.train_step import Params


def whole_batch_targets(
    settings: LossSettings, batch: Batch, values_after: jax.Array, policy_logprobs: jax.Array, scalars: StepScalars
) -> tuple[jax.Array, jax.Array]:
    """(advantages, value targets) of all rows of a batch; advantages normalised over all learned tokens if asked for.

    The normalisation is that of large-scale PPO practice (arXiv 2006.05990, section 3.4, "advantage normalization"),
    over the batch rather than a minibatch, so that splitting does not change it.
    """
    assert batch.episodes is not None
    advantages, targets = episode_targets(
        settings, batch, batch.episodes, values_after, policy_logprobs, jnp.zeros_like(policy_logprobs), scalars
    )
    if settings.advantage.whiten:
        learned = (batch.weights > 0).astype(advantages.dtype)
        count = jnp.maximum(jnp.sum(learned), 1.0)
        mean = jnp.sum(advantages) / count  # they are 0 where nothing is learned
        deviation = jnp.sqrt(jnp.sum(jnp.square(advantages - mean) * learned) / count)
        advantages = learned * (advantages - mean) / (deviation + ADVANTAGE_EPS)
    return advantages, targets


class Statistics:
    """Log-probs, entropies and values of tokens, at the sampler's temperature, computed in packed microbatches."""

    def __init__(self, model: PackedModel, microbatches: Microbatches) -> None:
        self._settings, self._placement, self._microbatches = model.settings, model.placement, microbatches
        self._temperature = model.temperature
        self._stats = jax.jit(model.token_stats, static_argnums=(4, 5), out_shardings=self._placement.rows)
        self._targets = jax.jit(partial(whole_batch_targets, model.settings.loss))

    def of(
        self,
        params: Params,
        tokens: np.ndarray,
        scored: np.ndarray | None = None,
        lengths: Lengths | None = None,
        *,
        with_argmax: bool = False,
    ) -> TokenStats:
        """Statistics [B, T] of sequences on the host.

        Args:
          scored: bool[B, T], tokens whose log-probs are wanted; all but the first of each row by default.
          lengths: of the sequences; all T tokens by default.
        """
        width = tokens.shape[1]
        lengths = Lengths.of([width] * len(tokens)) if lengths is None else lengths
        scored = np.ones(tokens.shape, bool) if scored is None else scored
        return self._of(params, tokens, scored, self._microbatches.packing(lengths, width), with_argmax=with_argmax)

    @property
    def prepares(self) -> bool:
        """Whether `prepared` computes anything."""
        loss = self._settings.loss
        return self._settings.minibatches > 1 or (loss.advantage.estimator == "gae" and loss.needs_values_ahead)

    def compile(self, params: Params, *, few: bool = False) -> None:
        """Compiles what log-probs of whole batches under these parameters need; nothing runs.

        Args:
          few: also what those of a few sequences need.
        """
        placement = self._placement
        for size in sorted({placement.own_rows, placement.few_rows if few else placement.own_rows}):
            for row_tokens in self._settings.row_lengths:
                shape = (size * placement.num_hosts, row_tokens)
                ints: Any = jax.ShapeDtypeStruct(shape, np.int32, sharding=placement.rows)
                scored = jax.ShapeDtypeStruct(shape, np.bool_, sharding=placement.rows)
                layout = Layout(ints, ints, ints, ints)
                self._stats.lower(params, ints, layout, scored, self._temperature, False).compile()

    def logprobs(
        self,
        params: Params,
        tokens: np.ndarray,
        scored: np.ndarray | None = None,
        lengths: Lengths | None = None,
    ) -> np.ndarray:
        """Log-probs float32[B, T], nats; arguments as of `of`."""
        return np.asarray(self.of(params, tokens, scored, lengths).logprobs)

    def all_correct(
        self, params: Params, tokens: np.ndarray, loss_mask: np.ndarray, lengths: Lengths | None = None
    ) -> np.ndarray:
        """bool[B]: greedy decoding would produce exactly the masked tokens of the row."""
        correct = self.of(params, tokens, loss_mask, lengths, with_argmax=True).argmax_correct
        return (np.asarray(correct) | ~loss_mask).all(axis=1)

    def prepared(
        self, params: Params, planned: PlannedBatch, *, current_version: int, kl_coefficient: float | None = None
    ) -> PlannedBatch:
        """Adds what must be known of the whole batch before its first gradient, by one forward pass over it.

        That is the proximal policy's log-probs when the batch makes several updates, and for gae advantages, value
        targets and old values. Without such a need the batch comes back as it is.
        """
        loss, batch = self._settings.loss, planned.batch
        several = self._settings.minibatches > 1
        ahead = loss.advantage.estimator == "gae" and (several or loss.needs_values_ahead)
        if not self.prepares:
            return planned
        stats = self._of(params, np.asarray(batch.tokens), np.asarray(batch.weights) != 0, planned.packing())
        if several:
            planned = planned.with_fields(proximal_logprobs=stats.logprobs)
        if ahead:
            assert stats.values_after is not None
            scalars = StepScalars.of(loss, current_version=current_version, kl_coefficient=kl_coefficient)
            advantages, targets = self._targets(planned.batch, stats.values_after, stats.logprobs, scalars)
            old_values = before(stats.values_after)
            planned = planned.with_fields(advantages=advantages, value_targets=targets, old_values=old_values)
        return planned

    def _of(
        self, params: Params, tokens: np.ndarray, scored: np.ndarray, packing: Packing, *, with_argmax: bool = False
    ) -> TokenStats:
        size = self._placement.few_rows
        if packing.num_rows(size) > size:
            size = self._placement.own_rows
        plan = packing.plan(size)
        rows = (plan.pack(tokens), plan.layout, plan.pack(scored))
        parts = [
            self._stats(params, *part, self._temperature, with_argmax)
            for part in self._microbatches.transferred(rows, plan.num_rows, size)
        ]
        return jax.tree.map(lambda *x: plan.unpack(np.concatenate([sharding.own_rows(piece) for piece in x])), *parts)
