"""Composes one loss from the settings: corrections, advantages, policy objective, KL, value and entropy terms.

An objective maps a microbatch to its share of the batch's loss and of each metric. All normalisers are in the batch's
weights, so the shares are plain sums over microbatches and devices; a metric that ends in `_max` is a maximum instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from learner_jax.batches import Batch, Episodes
from learner_jax.losses import corrections, kl, returns
from learner_jax.losses import policy as policy_losses
from learner_jax.losses import terms as losses
from learner_jax.models import Layout, TokenStats
from learner_jax.settings import AdvantageSettings, LossSettings
from learner_jax.training.policy_term import policy_objective

Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepScalars:
    """What changes from step to step besides the batch.

    Attributes:
      current_version: policy version of the parameters at the start of the step.
      changed_version: the newest version whose parameters differ from those of the version before it; tokens of older
        versions must have ratios other than 1.
      kl_coefficient: weight of the KL term.
    """

    current_version: Int[Array, ""]
    changed_version: Int[Array, ""]
    kl_coefficient: Float[Array, ""]

    @classmethod
    def of(
        cls,
        settings: LossSettings,
        *,
        current_version: int,
        changed_version: int | None = None,
        kl_coefficient: float | None = None,
    ) -> StepScalars:
        """Scalars on the host; by default the current version is the changed one, and the coefficient the settings'."""
        changed = current_version if changed_version is None else changed_version
        coefficient = settings.kl.coefficient if kl_coefficient is None else kl_coefficient
        values: Any = (np.int32(current_version), np.int32(changed), np.float32(coefficient))
        return cls(*values)


@dataclass(frozen=True)
class Objective:
    """A loss, and what the train step may do with it.

    Attributes:
      share: (statistics under the current parameters, batch, scalars) -> (share of the loss, shares of the metrics).
      token_local: a token's part of the loss depends on that token's own log-prob and entropy alone, so that its
        gradient can be taken as soon as they are known.
      packs: rows may hold several sequences.
    """

    share: Callable[[TokenStats, Batch, StepScalars], tuple[Array, Metrics]]
    token_local: bool = False
    packs: bool = True

    def __call__(self, stats: TokenStats, batch: Batch, scalars: StepScalars) -> tuple[Array, Metrics]:
        return self.share(stats, batch, scalars)


def _cross_entropy(stats: TokenStats, batch: Batch, scalars: StepScalars) -> tuple[Array, Metrics]:
    loss = losses.masked_sum(jax.vmap(losses.cross_entropy)(stats.logprobs), batch.weights)
    return loss, {"entropy": losses.masked_sum(stats.entropy, batch.weights)}


#: Cross-entropy of the target tokens.
supervised = Objective(_cross_entropy, token_local=True)


def reinforcement(settings: LossSettings) -> Objective:
    """The loss of reinforcement learning that the settings describe.

    Raises:
      DoorError: the policy's objective can't be used.
    """
    policy = policy_objective(settings.policy)

    def objective(stats: TokenStats, batch: Batch, scalars: StepScalars) -> tuple[Array, Metrics]:
        mask = batch.weights > 0
        ratios = _Ratios.of(stats, batch, scalars, corrected=settings.mismatch.active)
        segments = None if batch.layout is None else batch.layout.segments
        correction = _mismatch_correction(settings, ratios, mask, segments)
        advantages, targets = _advantages(settings, stats, batch, ratios, scalars)
        arrays = {
            "logprobs": stats.logprobs,
            "log_ratios": ratios.to_anchor,
            "proximal_log_ratios": ratios.to_proximal,
            "staleness_log_ratios": ratios.proximal_to_anchor,
            "advantages": advantages,
            "loss_mask": mask,
            "segments": segments,
        }
        token_loss, values = policy(arrays)
        token_loss = correction * token_loss
        if batch.reference_logprobs is not None:
            values["kl"] = jax.vmap(kl.ESTIMATORS["k3"])(stats.logprobs, batch.reference_logprobs)
            if settings.kl.use == "loss":
                term = _kl_term(settings, stats, batch, batch.reference_logprobs)
                token_loss = token_loss + scalars.kl_coefficient * term
        if settings.entropy_coefficient > 0:
            token_loss = token_loss - settings.entropy_coefficient * stats.entropy
        loss = losses.masked_sum(token_loss, batch.weights)
        values |= {"entropy": stats.entropy, "ratio": policy_losses.importance_ratios(ratios.to_behavior)}
        if settings.mismatch.active:
            values["mismatch_masked"] = (correction == 0).astype(jnp.float32)
        metrics = {name: losses.masked_sum(value, batch.weights) for name, value in values.items()}
        if batch.episodes is not None and stats.values_after is not None and targets is not None:
            value_loss, value_metrics = _value_term(settings, stats, batch, batch.episodes, targets)
            loss, metrics = loss + settings.value.coefficient * value_loss, metrics | value_metrics
        return loss, metrics | _off_policy_metrics(ratios, batch, scalars, mask)

    coupled = (
        settings.advantage.uses_values
        or not policy.token_local
        or settings.mismatch.sequence_band is not None
        or settings.mismatch.veto is not None
    )
    return Objective(objective, token_local=not coupled, packs=policy.packs)


@dataclass(frozen=True)
class _Ratios:
    """Log ratios of every token, nats [B, T]; the anchor policies carry no gradient.

    Attributes:
      to_anchor: current / anchor, with the gradient of the current log-prob. The anchor is the behaviour policy, or,
        where the mismatch is corrected for by itself, the trainer's own version of it.
      to_proximal: current / proximal, with gradient; constant 0 in value when there is one update per batch.
      to_behavior: proximal / behaviour.
      proximal_to_anchor: proximal / anchor: staleness, and mismatch where that is not corrected for by itself.
      mismatch: trainer / sampler at the version that sampled the token; 0 where the trainer's is not known.
    """

    to_anchor: Array
    to_proximal: Array
    to_behavior: Array
    proximal_to_anchor: Array
    mismatch: Array

    @classmethod
    def of(cls, stats: TokenStats, batch: Batch, scalars: StepScalars, *, corrected: bool) -> _Ratios:
        current = stats.logprobs
        # With one update per batch the learner at the start of the step is the learner now.
        proximal = jax.lax.stop_gradient(current) if batch.proximal_logprobs is None else batch.proximal_logprobs
        known = batch.behavior_logprobs if batch.trainer_logprobs is None else batch.trainer_logprobs
        trainer = jnp.where(batch.policy_version == scalars.current_version, proximal, known)
        anchor = trainer if corrected else batch.behavior_logprobs
        return cls(
            to_anchor=current - anchor,
            to_proximal=current - proximal,
            to_behavior=proximal - batch.behavior_logprobs,
            proximal_to_anchor=proximal - anchor,
            mismatch=trainer - batch.behavior_logprobs,
        )


def _mismatch_correction(
    settings: LossSettings, ratios: _Ratios, mask: Bool[Array, "B T"], segments: Int[Array, "B T"] | None
) -> Float[Array, "B T"]:
    chosen = settings.mismatch
    if not chosen.active:
        return jnp.ones(mask.shape)
    weights = partial(
        corrections.mismatch_weights,
        truncation=chosen.truncation,
        band=chosen.band,
        sequence_band=chosen.sequence_band,
        veto=chosen.veto,
    )
    return jax.vmap(weights)(ratios.mismatch, mask, segments)


def _kl_term(
    settings: LossSettings, stats: TokenStats, batch: Batch, reference_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    term: Array = jax.vmap(kl.ESTIMATORS[settings.kl.estimator])(stats.logprobs, reference_logprobs)
    if settings.kl.importance_weighted:
        term = term * policy_losses.importance_ratios(stats.logprobs - batch.behavior_logprobs)
    return term


def _advantages(
    settings: LossSettings, stats: TokenStats, batch: Batch, ratios: _Ratios, scalars: StepScalars
) -> tuple[Float[Array, "B T"], Float[Array, "B T"] | None]:
    """(advantage of every token, value targets at decisions or None)."""
    if batch.value_targets is not None or batch.episodes is None:
        return batch.advantages, batch.value_targets
    assert stats.values_after is not None
    log_ratios = jax.lax.stop_gradient(ratios.to_anchor)
    policy_logprobs = jax.lax.stop_gradient(stats.logprobs)
    return episode_targets(settings, batch, batch.episodes, stats.values_after, policy_logprobs, log_ratios, scalars)


def episode_targets(
    settings: LossSettings,
    batch: Batch,
    episodes: Episodes,
    values_after: Float[Array, "B T"],
    policy_logprobs: Float[Array, "B T"],
    log_ratios: Float[Array, "B T"],
    scalars: StepScalars,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Advantages, carried from each decision to all tokens of its action, and value targets at decisions.

    Args:
      policy_logprobs: of the policy that the KL reward is about.
      log_ratios: log(policy / behaviour), for vtrace.
    """
    values_after = jax.lax.stop_gradient(values_after)
    rewards = episodes.rewards
    if settings.kl.use == "reward" and batch.reference_logprobs is not None:
        penalty = jax.vmap(kl.ESTIMATORS[settings.kl.estimator])(policy_logprobs, batch.reference_logprobs)
        rewards = rewards - scalars.kl_coefficient * jnp.where(batch.weights > 0, penalty, 0.0)

    def one(
        rewards: Array, values_after: Array, values: Array, log_ratios: Array, sampled: Array, episode: Episodes
    ) -> tuple[Array, Array]:
        targets = _sequence_targets(
            settings.advantage,
            settings.policy.leaves_ratio_to_advantages,
            rewards,
            values_after,
            values,
            log_ratios,
            sampled,
            episode,
        )
        return targets.advantages[episode.decision_index], targets.values

    values = before(values_after, batch.layout)
    advantages, targets = jax.vmap(one)(rewards, values_after, values, log_ratios, batch.weights > 0, episodes)
    return jnp.where(batch.weights > 0, advantages, 0.0), targets


def _sequence_targets(
    settings: AdvantageSettings,
    weighted: bool,
    rewards: Float[Array, "T"],
    values_after: Float[Array, "T"],
    values: Float[Array, "T"],
    log_ratios: Float[Array, "T"],
    sampled: Bool[Array, "T"],
    episode: Episodes,
) -> returns.Targets:
    # Several sequences in one row stay apart: the discount on a sequence's last token is 0.
    rewards = returns.with_bootstrap(rewards, values_after, episode.bootstraps)
    if settings.estimator == "gae":
        return returns.generalized_advantages(
            rewards, values, episode.discounts, episode.decisions, trace_decay=settings.trace_decay
        )
    if settings.segments == "turn":
        log_ratios = returns.turn_log_ratios(
            log_ratios, sampled, episode.decision_index, mean=settings.turn_ratio == "geometric_mean"
        )
    return returns.vtrace(
        rewards,
        values,
        episode.discounts,
        episode.decisions,
        log_ratios,
        trace_decay=settings.trace_decay,
        clip_rho=settings.clip_rho,
        clip_c=settings.clip_c,
        weighted=weighted,
    )


def before(values_after: Float[Array, "*B T"], layout: Layout | None = None) -> Float[Array, "*B T"]:
    """Value of the state before each token, from the values after; a first token has no state before it, and gets 0."""
    if layout is None:
        return jnp.concatenate([jnp.zeros_like(values_after[..., :1]), values_after[..., :-1]], axis=-1)
    earlier = jnp.take_along_axis(values_after, jnp.maximum(layout.predecessors, 0), axis=-1)
    return jnp.where(layout.predecessors < 0, 0.0, earlier)


def _value_term(
    settings: LossSettings, stats: TokenStats, batch: Batch, episodes: Episodes, targets: Float[Array, "B T"]
) -> tuple[Array, Metrics]:
    assert stats.values_after is not None
    values = before(stats.values_after, batch.layout)
    old = batch.old_values if batch.old_values is not None else values
    token_loss = jax.vmap(partial(losses.value_loss, clip=settings.value.clip))(values, targets, old)
    sums = {"value_loss": token_loss, "value": values, "value_target": targets}
    metrics = {name: losses.masked_sum(x, episodes.value_weights) for name, x in sums.items()}
    metrics["value_target_square"] = losses.masked_sum(jnp.square(targets), episodes.value_weights)
    return metrics["value_loss"], metrics


def _off_policy_metrics(ratios: _Ratios, batch: Batch, scalars: StepScalars, mask: Bool[Array, "B T"]) -> Metrics:
    """Sums from which the step computes the effective sample size, the mismatch, and whether ratios are honest."""
    weights = jnp.where(mask, policy_losses.importance_ratios(ratios.to_behavior), 0.0)
    current = mask & (batch.policy_version == scalars.current_version)
    lagged = mask & (batch.policy_version < scalars.changed_version)
    difference = jnp.where(current, jnp.abs(ratios.to_behavior), 0.0)
    metrics = {
        "weight_sum": jnp.sum(weights),
        "weight_square_sum": jnp.sum(jnp.square(weights)),
        "learned_tokens": jnp.sum(mask.astype(jnp.float32)),
        "mismatch_sum": jnp.sum(difference),
        "mismatch_max": jnp.max(difference),
        "mismatch_tokens": jnp.sum(current.astype(jnp.float32)),
        "lagged_tokens": jnp.sum(lagged.astype(jnp.float32)),
        "lagged_log_ratio_max": jnp.max(jnp.where(lagged, jnp.abs(ratios.to_behavior), 0.0)),
    }
    return jax.lax.stop_gradient(metrics)


def direct_preference(beta: float) -> Objective:
    """DPO on rows in pairs: a chosen answer, then the rejected one (see `batch.preference_batch`)."""

    def objective(stats: TokenStats, batch: Batch, scalars: StepScalars) -> tuple[Array, Metrics]:
        assert batch.reference_logprobs is not None
        mask = batch.weights > 0
        ratio = jnp.sum(jnp.where(mask, stats.logprobs - batch.reference_logprobs, 0.0), axis=1)
        chosen, rejected = ratio[0::2], ratio[1::2]
        pair_loss = jax.vmap(partial(losses.dpo, beta=beta))(chosen, rejected)
        margin = beta * (chosen - rejected)
        return _pair_shares(batch, pair_loss, {"margin": margin, "preference_accuracy": margin > 0})

    return Objective(objective, packs=False)


def _bradley_terry(stats: TokenStats, batch: Batch, scalars: StepScalars) -> tuple[Array, Metrics]:
    """A reward model on rows in pairs: the score of an answer is the value after its last token."""
    assert stats.values_after is not None
    mask = batch.weights > 0
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    scores = jnp.take_along_axis(stats.values_after, last[:, None], axis=1)[:, 0]
    chosen, rejected = scores[0::2], scores[1::2]
    pair_loss = jax.vmap(losses.bradley_terry)(chosen, rejected)
    margin = chosen - rejected
    return _pair_shares(batch, pair_loss, {"margin": margin, "preference_accuracy": margin > 0})


#: A reward model's loss on rows in pairs.
bradley_terry = Objective(_bradley_terry, packs=False)


def _pair_shares(batch: Batch, pair_loss: Float[Array, "P"], values: Metrics) -> tuple[Array, Metrics]:
    """The weights of a pair's two rows add up to 1 / number of pairs in the whole batch; 0 for padding."""
    pair_weights = jnp.sum(batch.weights, axis=1).reshape(-1, 2).sum(axis=1)
    shares = {name: losses.masked_sum(value.astype(jnp.float32), pair_weights) for name, value in values.items()}
    return losses.masked_sum(pair_loss, pair_weights), jax.lax.stop_gradient(shares)
