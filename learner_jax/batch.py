"""From trajectories to the fixed-shape arrays of one train step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from learner_jax.advantages import group_advantages
from learner_jax.config import LossSettings
from learner_jax.contracts import NOT_SAMPLED, Trajectory
from learner_jax.hygiene import GroupCounts, clean_groups
from learner_jax.kl import ESTIMATORS
from learner_jax.losses import loss_weights


class BatchError(ValueError):
    """A trajectory doesn't fit the learner's fixed shapes."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Episodes:
    """What estimators with a value function need of each row; conventions as in `learner_jax.returns`.

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
    """Rows of one optimizer step, right-padded with token 0 and weight 0; a pytree.

    Built of NumPy arrays on the host (typed as JAX's, which they become in the train step). What a run's settings do
    not ask for is None.

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


@dataclass(frozen=True)
class BatchStats:
    """Facts about a batch that need no model."""

    reward: float
    reward_parts: dict[str, float]
    staleness_mean: float
    staleness_max: int
    num_tokens: int
    answer_tokens_mean: float
    zero_variance_groups: int
    truncated_share: float
    mixed_version_answers: int
    dropped_groups: int
    masked_overlong: int
    penalized_overlong: int
    masked_aborted: int


def _rows(rows: Sequence[np.ndarray], length: int, dtype: type, fill: float = 0) -> Any:
    out: Any = np.full((len(rows), length), fill, dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def _on_host(array: np.ndarray) -> Any:
    """A host array where `Batch` declares what the train step will see: a JAX array of the same shape and dtype."""
    return array


def rl_batch(
    groups: Sequence[Sequence[Trajectory]],
    settings: LossSettings,
    *,
    sequence_length: int,
    trained_version: int,
    minibatches: int = 1,
    reference: Callable[[np.ndarray], np.ndarray] | None = None,
    kl_coefficient: float = 0.0,
) -> tuple[Batch, BatchStats]:
    """Builds the batch of one reinforcement-learning step.

    Args:
      minibatches: optimizer updates that the rows will be cut into; each has its own normaliser.
      reference: tokens int[B, T] to the reference's log-probs float[B, T].
      kl_coefficient: weight of a KL that is part of the reward; estimators without values take it into account here.
    Raises:
      BatchError: a trajectory is longer than `sequence_length`.
    """
    trajectories = [trajectory for group in groups for trajectory in group]
    _check_lengths(trajectories, sequence_length)
    cleaned = clean_groups(groups, settings.groups)
    mask = _rows([t.loss_mask for t in trajectories], sequence_length, np.bool_)
    mask &= np.concatenate(cleaned.learned)[:, None]
    tokens = _rows([t.tokens for t in trajectories], sequence_length, np.int32)
    behavior = _rows([t.behavior_logprobs for t in trajectories], sequence_length, np.float32)
    reference_logprobs = None if reference is None else reference(tokens)
    if settings.advantage.uses_values:
        advantages: Any = np.zeros(mask.shape, np.float32)
        episodes = _episodes(trajectories, cleaned.penalties, mask, settings, minibatches)
    else:
        rewards = cleaned.rewards
        if settings.kl.use == "reward" and reference_logprobs is not None:
            estimator = ESTIMATORS[settings.kl.estimator]
            penalty = np.asarray(estimator(behavior, _on_host(reference_logprobs)), np.float64)
            per_answer = kl_coefficient * np.where(mask, penalty, 0.0).sum(axis=1)
            cuts = np.cumsum([len(group) for group in groups])[:-1]
            rewards = [r - p for r, p in zip(rewards, np.split(per_answer, cuts), strict=True)]
        advantages = (_answer_advantages(rewards, cleaned.valid, mask, settings) * mask).astype(np.float32)
        episodes = None
    batch = Batch(
        tokens=tokens,
        weights=_weights(mask, settings, minibatches),
        advantages=advantages,
        behavior_logprobs=behavior,
        policy_version=_rows([t.policy_version for t in trajectories], sequence_length, np.int32, NOT_SAMPLED),
        reference_logprobs=None if reference_logprobs is None else _on_host(reference_logprobs),
        episodes=episodes,
    )
    return batch, _stats(groups, trajectories, trained_version, cleaned.counts)


def _check_lengths(trajectories: Sequence[Trajectory], sequence_length: int) -> None:
    for t in trajectories:
        if len(t.tokens) > sequence_length:
            raise BatchError(
                f"trajectory {t.trajectory_id} has {len(t.tokens)} tokens, rows hold {sequence_length}: "
                f"raise learner.sequence_length"
            )


def _weights(mask: np.ndarray, settings: LossSettings, minibatches: int, reduction: str | None = None) -> Any:
    reduction = reduction or settings.reduction
    parts = np.split(mask, minibatches)
    weights = [loss_weights(part, reduction=reduction, constant_tokens=settings.constant_tokens) for part in parts]
    return np.concatenate(weights)


def _answer_advantages(
    rewards: Sequence[np.ndarray],
    valid: Sequence[np.ndarray],
    mask: np.ndarray,
    settings: LossSettings,
) -> np.ndarray:
    """Advantage of every answer [B, 1]; answers without a valid reward are left out of their group's statistics."""
    cuts = np.cumsum([len(group) for group in rewards])[:-1]
    num_tokens = np.split(mask.sum(axis=1).astype(np.float64), cuts)
    needed = 2 if settings.advantage.estimator == "rloo" else 1
    complete = [i for i, answers in enumerate(valid) if answers.sum() >= needed]
    advantages = [np.zeros(len(group)) for group in rewards]
    if complete:
        estimated = group_advantages(
            [rewards[i][valid[i]] for i in complete],
            settings.advantage.estimator,
            num_tokens=[num_tokens[i][valid[i]] for i in complete],
        )
        for i, values in zip(complete, estimated, strict=True):
            advantages[i][valid[i]] = values
    return np.concatenate(advantages)[:, None]


def _episodes(
    trajectories: Sequence[Trajectory],
    penalties: Sequence[np.ndarray],
    mask: np.ndarray,
    settings: LossSettings,
    minibatches: int,
) -> Episodes:
    chosen = settings.advantage
    shape = mask.shape
    rewards, discounts = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    bootstraps, decisions = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    index = np.zeros(shape, np.int32)
    for row, (t, penalty) in enumerate(zip(trajectories, np.concatenate(penalties), strict=True)):
        last = len(t.tokens) - 1
        rewards[row, : last + 1] = t.rewards
        rewards[row, last] += penalty
        new_turn = np.flatnonzero(np.diff(t.turn))
        discounts[row, : last + 1] = chosen.discount
        discounts[row, new_turn] *= chosen.turn_discount
        if t.finish_reason != "stop":
            bootstraps[row, last] = discounts[row, last]
        discounts[row, last] = 0.0
        positions = np.flatnonzero(t.loss_mask)
        index[row, positions] = positions
        if chosen.segments == "turn":
            _, first, turn_of = np.unique(t.turn[positions], return_index=True, return_inverse=True)
            index[row, positions] = positions[first][turn_of]
        decisions[row, index[row, positions]] = True
    # The mean over decisions, whatever the reduction of the policy's loss: a value is learned per state.
    value_weights = _weights(decisions & mask.any(axis=1, keepdims=True), settings, minibatches, "token_mean")
    on_host = [_on_host(x) for x in (rewards, discounts, bootstraps, decisions, index, value_weights)]
    return Episodes(*on_host)


def _stats(
    groups: Sequence[Sequence[Trajectory]],
    trajectories: Sequence[Trajectory],
    trained_version: int,
    counts: GroupCounts,
) -> BatchStats:
    lags = np.array([trained_version - t.oldest_version for t in trajectories])
    num_tokens = sum(int(t.loss_mask.sum()) for t in trajectories)
    names = sorted({name for t in trajectories for name in t.reward_parts})
    return BatchStats(
        reward=float(np.mean([t.total_reward for t in trajectories])),
        reward_parts={n: float(np.mean([t.reward_parts.get(n, 0.0) for t in trajectories])) for n in names},
        staleness_mean=float(lags.mean()),
        staleness_max=int(lags.max()),
        num_tokens=num_tokens,
        answer_tokens_mean=num_tokens / len(trajectories),
        truncated_share=float(np.mean([t.finish_reason == "length" for t in trajectories])),
        mixed_version_answers=sum(len(np.unique(t.policy_version[t.loss_mask])) > 1 for t in trajectories),
        zero_variance_groups=counts.zero_variance_groups,
        dropped_groups=counts.dropped_groups,
        masked_overlong=counts.masked_overlong,
        penalized_overlong=counts.penalized_overlong,
        masked_aborted=counts.masked_aborted,
    )


#: (tokens, loss mask) of one supervised example
Example = tuple[Sequence[int], Sequence[bool]]


def supervised_batch(examples: Sequence[Example], *, sequence_length: int, reduction: str = "token_mean") -> Batch:
    """Builds a batch for cross-entropy from (tokens, loss mask) pairs.

    Raises:
      BatchError: an example is longer than `sequence_length`.
    """
    longest = max(len(tokens) for tokens, _ in examples)
    if longest > sequence_length:
        raise BatchError(
            f"a supervised example has {longest} tokens, rows hold {sequence_length}: raise learner.sequence_length"
        )
    mask = _rows([np.asarray(m) for _, m in examples], sequence_length, np.bool_)
    zeros: Any = np.zeros(mask.shape, np.float32)
    return Batch(
        tokens=_rows([np.asarray(tokens) for tokens, _ in examples], sequence_length, np.int32),
        weights=_on_host(loss_weights(mask, reduction=reduction)),
        advantages=zeros,
        behavior_logprobs=zeros,
        policy_version=_on_host(np.full(mask.shape, NOT_SAMPLED, np.int32)),
    )


def preference_batch(
    pairs: Sequence[tuple[Example, Example]],
    *,
    sequence_length: int,
    reference: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Batch:
    """Builds a batch for DPO or Bradley-Terry: rows 2i and 2i + 1 are the chosen and the rejected answer of pair i.

    Args:
      reference: tokens int[B, T] to the reference's log-probs float[B, T]; DPO needs it.
    Raises:
      BatchError: an example is longer than `sequence_length`, or has no token to score.
    """
    rows = [example for pair in pairs for example in pair]
    for index, (_, mask) in enumerate(rows):
        if not any(mask):
            raise BatchError(
                f"the {'rejected' if index % 2 else 'chosen'} answer of pair {index // 2} has no token in its loss mask"
            )
    batch = supervised_batch(rows, sequence_length=sequence_length, reduction="sequence_mean")
    if reference is None:
        return batch
    return replace(batch, reference_logprobs=_on_host(reference(np.asarray(batch.tokens))))
