"""The arrays that one optimizer step learns from: one sequence a row on the host, packed rows in the train step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from learner_jax.batches.packing import Plan
from learner_jax.batches.rows import Lengths
from learner_jax.contracts import NOT_SAMPLED
from learner_jax.models import Layout
from learner_jax.settings import LossSettings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Episodes:
    """What estimators with a value function need of each row; conventions as in `learner_jax.losses.returns`.

    Attributes:
      rewards: placed where they are earned.
      discounts: from each token to the next one; 0 on the last token, 1 on padding.
      bootstraps: the discount on the last token of an episode that was cut off, 0 elsewhere.
      decisions: sampled tokens, or with turn segments the first sampled token of each turn.
      decision_index: position of the decision that each sampled token belongs to; 0 elsewhere.
      value_weights: weight of each decision's value loss, normalised over the whole batch.
    """

    rewards: Float[Array, "B T"]
    discounts: Float[Array, "B T"]
    bootstraps: Float[Array, "B T"]
    decisions: Bool[Array, "B T"]
    decision_index: Int[Array, "B T"]
    value_weights: Float[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What one optimizer step learns from; a pytree.

    Built on the host of NumPy arrays (typed as JAX's, which they become in the train step), one sequence a row,
    right-padded with token 0 and weight 0. `packed` lays the sequences into rows for the train step; the same fields
    then have one entry per slot of a row, and `layout` says which is what. What settings do not ask for is None.

    Attributes:
      tokens: token ids.
      weights: weight of each token's loss, normalised over the whole batch; 0 on padding, on unsampled tokens and on
        answers that are not learned from.
      advantages: one value per token; zeros where the train step computes them from values.
      behavior_logprobs: log-probs of the sampler, nats.
      policy_version: version that sampled each token, -1 elsewhere.
      reference_logprobs: log-probs of the frozen reference, nats.
      trainer_logprobs: the trainer's own log-probs under the version that sampled the token, nats; the sampler's where
        that version is gone.
      proximal_logprobs: the learner's log-probs at the start of the step, when it makes several updates.
      old_values: values of the state before each token at the start of the step.
      value_targets: targets of the value function at decisions, when computed before the step.
      episodes: what the train step computes advantages from.
      lengths, groups, shared: of each sequence, as in `rows.Lengths`; None on packed rows. Without `lengths`, all T
        tokens of a row are one sequence.
      layout: of packed rows.
    """

    tokens: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    behavior_logprobs: Float[Array, "B T"]
    policy_version: Int[Array, "B T"]
    reference_logprobs: Float[Array, "B T"] | None = None
    trainer_logprobs: Float[Array, "B T"] | None = None
    proximal_logprobs: Float[Array, "B T"] | None = None
    old_values: Float[Array, "B T"] | None = None
    value_targets: Float[Array, "B T"] | None = None
    episodes: Episodes | None = None
    lengths: Int[Array, "B"] | None = None
    groups: Int[Array, "B"] | None = None
    shared: Int[Array, "B"] | None = None
    layout: Layout | None = None


def packed(batch: Batch, plan: Plan) -> Batch:
    """The rows of the train step: every field with one entry per slot, padding with weight 0."""

    def pack(values: Any, fill: float = 0) -> Any:
        return None if values is None else plan.pack(np.asarray(values), fill=fill)

    episodes = None
    if batch.episodes is not None:
        decisions = np.asarray(batch.episodes.decision_index)
        slots = np.take_along_axis(plan.slots, decisions, axis=1) % plan.row_tokens
        episodes = replace(jax.tree.map(pack, batch.episodes), decision_index=pack(slots.astype(np.int32)))
    fields = {
        name: pack(getattr(batch, name))
        for name in Batch.__dataclass_fields__
        if name not in ("policy_version", "episodes", "lengths", "groups", "shared", "layout")
    }
    version = pack(batch.policy_version, NOT_SAMPLED)
    return Batch(**fields, policy_version=version, episodes=episodes, layout=plan.layout)


def abstract_batch(settings: LossSettings, *, num_rows: int, row_tokens: int, minibatches: int = 1) -> Batch:
    """Shapes and dtypes of packed rows as the train step takes them under these settings; nothing is allocated."""

    def of(dtype: type) -> Any:
        return jax.ShapeDtypeStruct((num_rows, row_tokens), dtype)

    floats, ints = of(np.float32), of(np.int32)
    ahead = settings.advantage.estimator == "gae" and (minibatches > 1 or settings.needs_values_ahead)
    episodes = Episodes(floats, floats, floats, of(np.bool_), ints, floats)
    return Batch(
        tokens=ints,
        weights=floats,
        advantages=floats,
        behavior_logprobs=floats,
        policy_version=ints,
        reference_logprobs=floats if settings.kl.coefficient > 0 else None,
        trainer_logprobs=floats if settings.mismatch.lagging else None,
        proximal_logprobs=floats if minibatches > 1 else None,
        old_values=floats if ahead else None,
        value_targets=floats if ahead else None,
        episodes=episodes if settings.advantage.uses_values else None,
        layout=Layout(ints, ints, ints, ints),
    )


def batch_lengths(batch: Batch) -> Lengths:
    """Lengths of the sequences of a batch that is not packed."""
    rows, width = batch.tokens.shape
    if batch.lengths is None:
        return Lengths.of([width] * rows)
    assert batch.groups is not None
    assert batch.shared is not None
    return Lengths(np.asarray(batch.lengths), np.asarray(batch.groups), np.asarray(batch.shared))


def on_host(array: np.ndarray) -> Any:
    """A host array where `Batch` declares what the train step will see: a JAX array of the same shape and dtype."""
    return array
