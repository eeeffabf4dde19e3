"""From trajectories to the batch of one reinforcement-learning step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from learner_jax.batches.batch import Batch, Episodes, on_host
from learner_jax.batches.batch_stats import BatchStats, batch_stats
from learner_jax.batches.estimators import estimator_of, function_of
from learner_jax.batches.hygiene import CleanedGroups, clean_groups
from learner_jax.batches.sequences import BatchError, Reference, Sequences, padded, sequences
from learner_jax.batches.spread import Spread
from learner_jax.contracts import NOT_SAMPLED, Trajectory
from learner_jax.hosts import Hosts
from learner_jax.losses import (
    ESTIMATORS,
    Part,
    group_advantages,
    loss_counts,
    loss_weights,
    turn_advantages,
    turn_returns,
)
from learner_jax.settings import LossSettings


def rl_batch(
    groups: Sequence[Sequence[Trajectory]],
    settings: LossSettings,
    *,
    sequence_length: int,
    trained_version: int,
    minibatches: int | Sequence[int] = 1,
    rows: Sequences | None = None,
    reference: Reference | None = None,
    kl_coefficient: float = 0.0,
    hosts: Hosts | None = None,
) -> tuple[Batch, BatchStats]:
    """Builds the batch of one reinforcement-learning step, or this host's part of it.

    A trajectory with branches has a row for each; their advantage is that of the whole episode in its group.

    Args:
      minibatches: optimizer updates that the rows will be cut into; each has its own normaliser. Their number, if they
        are of one size, or the rows of each.
      rows: the sequences of the groups, where they were laid out before.
      reference: log-probs of the frozen reference, if the loss has a KL.
      kl_coefficient: weight of a KL that is part of the reward; estimators without values take it into account here.
      hosts: that hold the other parts of the batch; normalisers and statistics are those of the whole.
    Raises:
      BatchError: a trajectory is longer than `sequence_length`, or none has a part that `advantage.parts` names.
    """
    answers = [trajectory for group in groups for trajectory in group]
    spread = Spread(answers)
    trajectories = spread.sequences
    rows = sequences(groups, sequence_length=sequence_length) if rows is None else rows
    hosts = hosts or Hosts()
    updates = [len(trajectories) // minibatches] * minibatches if isinstance(minibatches, int) else minibatches
    cleaned = clean_groups(groups, settings.groups, _parts(answers, settings))
    mask = rows.sampled & spread.given(np.concatenate(cleaned.learned))[:, None]
    behavior = padded([t.behavior_logprobs for t in trajectories], sequence_length, np.float32)
    versions = padded([t.policy_version for t in trajectories], sequence_length, np.int32, NOT_SAMPLED)
    reference_logprobs = None if reference is None else reference(rows)
    if settings.advantage.uses_values:
        advantages: Any = np.zeros(mask.shape, np.float32)
        overlong = spread.given(np.concatenate(cleaned.penalties))
        episodes = _episodes(trajectories, overlong, mask, settings, updates, hosts)
    else:
        penalties = None
        if settings.kl.use == "reward" and reference_logprobs is not None:
            penalties = kl_coefficient * _kl_penalties(behavior, reference_logprobs, mask, settings)
        advantages = _estimated(groups, cleaned, penalties, mask, settings, spread, hosts)
        episodes = None
    batch = Batch(
        tokens=on_host(rows.tokens),
        weights=_weights(mask, settings, updates, hosts),
        advantages=advantages,
        behavior_logprobs=behavior,
        policy_version=versions,
        reference_logprobs=None if reference_logprobs is None else on_host(reference_logprobs),
        episodes=episodes,
        lengths=on_host(rows.lengths.tokens),
        groups=on_host(rows.lengths.groups),
        shared=on_host(rows.lengths.shared),
    )
    return batch, batch_stats(answers, spread, versions, rows.sampled, trained_version, cleaned.counts, hosts)


def _kl_penalties(behavior: np.ndarray, reference: Any, mask: np.ndarray, settings: LossSettings) -> np.ndarray:
    """float64[B, T]: the KL of each sampled token, as the reward takes it into account."""
    penalty = np.asarray(ESTIMATORS[settings.kl.estimator](behavior, on_host(reference)), np.float64)
    return np.where(mask, penalty, 0.0)


def _estimated(
    groups: Sequence[Sequence[Trajectory]],
    cleaned: CleanedGroups,
    penalties: np.ndarray | None,
    mask: np.ndarray,
    settings: LossSettings,
    spread: Spread,
    hosts: Hosts,
) -> np.ndarray:
    """float32[B, T]: the advantages of estimators without values; 0 outside the mask."""
    if settings.advantage.credit == "turn":
        estimated = _turn_advantages(groups, cleaned, penalties, mask.shape, settings, spread)
    else:
        rewards = cleaned.rewards
        if penalties is not None:
            cuts = np.cumsum([len(group) for group in groups])[:-1]
            taken = np.split(spread.reduced(penalties.sum(axis=1)), cuts)
            rewards = [reward - penalty for reward, penalty in zip(rewards, taken, strict=True)]
        num_tokens = spread.reduced(mask.sum(axis=1)).astype(np.float64)
        estimated = spread.given(_answer_advantages(rewards, cleaned.valid, num_tokens, settings, hosts))
    return (estimated * mask).astype(np.float32)


def _parts(trajectories: Sequence[Trajectory], settings: LossSettings) -> dict[str, Part]:
    """The parts of the reward that are normalised apart."""
    if not settings.advantage.parts:
        return {}
    found = {name for trajectory in trajectories for name in trajectory.reward_parts}
    judged = any(trajectory.is_judged for trajectory in trajectories)
    if judged and (missing := [name for name in settings.advantage.parts if name not in found]):
        raise BatchError(
            f"learner.loss.advantage.parts names {', '.join(map(repr, missing))}, but no answer's reward has such a "
            f"part; it has {', '.join(map(repr, sorted(found))) or 'none'}"
        )
    return {name: Part(part.weight, part.clip, part.gate) for name, part in settings.advantage.parts.items()}


def _weights(
    mask: np.ndarray, settings: LossSettings, updates: Sequence[int], hosts: Hosts, reduction: str | None = None
) -> Any:
    """Weights of all tokens, each update's normalised over its rows on all hosts."""
    parts = np.split(mask, np.cumsum(updates)[:-1])
    counts = np.sum(hosts.gather([loss_counts(part) for part in parts], "tokens that are learned from"), axis=0)
    weights = [
        loss_weights(
            part,
            reduction=reduction or settings.reduction,
            constant_tokens=settings.constant_tokens,
            counts=(int(sequences), int(tokens)),
        )
        for part, (sequences, tokens) in zip(parts, counts, strict=True)
    ]
    return np.concatenate(weights)


def _answer_advantages(
    rewards: Sequence[np.ndarray],
    valid: Sequence[np.ndarray],
    num_tokens: np.ndarray,
    settings: LossSettings,
    hosts: Hosts,
) -> np.ndarray:
    """Advantage of every answer [A, 1]; answers without a valid reward are left out of their group's statistics.

    Args:
      num_tokens: of each answer [A] that are learned from.
    """
    by_group = np.split(num_tokens, np.cumsum([len(group) for group in rewards])[:-1])
    needed = 2 if settings.advantage.estimator == "rloo" else 1
    complete = [i for i, answers in enumerate(valid) if answers.sum() >= needed]
    compared, counted = [rewards[i][valid[i]] for i in complete], [by_group[i][valid[i]] for i in complete]
    first = 0
    if settings.advantage.compares_groups:
        own = [[r.tolist(), n.tolist()] for r, n in zip(compared, counted, strict=True)]
        every = hosts.gather(own, "rewards")
        first = sum(len(part) for part in every[: hosts.index])
        compared = [np.array(r) for part in every for r, _ in part]
        counted = [np.array(n) for part in every for _, n in part]
    advantages = [np.zeros(len(group)) for group in rewards]
    if compared:
        estimated = group_advantages(compared, estimator_of(settings.advantage), num_tokens=counted)
        for i, values in zip(complete, estimated[first : first + len(complete)], strict=True):
            advantages[i][valid[i]] = values
    return np.concatenate(advantages)[:, None]


def _turn_advantages(
    groups: Sequence[Sequence[Trajectory]],
    cleaned: CleanedGroups,
    penalties: np.ndarray | None,
    shape: tuple[int, ...],
    settings: LossSettings,
    spread: Spread,
) -> np.ndarray:
    """Advantage of every token [B, T]: that of its turn; answers without a valid reward are in no comparison.

    Args:
      penalties: of the KL, by token [B, T], where it is part of the reward.
    """
    chosen = settings.advantage
    fewest = 2 if chosen.estimator == "rloo" else 1
    estimator = function_of(chosen)
    advantages, first = np.zeros(shape), 0
    columns = (groups, cleaned.valid, cleaned.penalties, cleaned.learned)
    for group, valid, overlong, learned in zip(*columns, strict=True):
        returns, turns = [], []
        compared = np.flatnonzero(valid) if learned.any() else np.zeros(0, np.int64)
        for offset in compared:
            t = group[offset]
            turns.append(np.unique(t.turn, return_inverse=True)[1])
            earned = np.asarray(t.rewards, np.float64).copy()
            earned[-1] += overlong[offset]
            if penalties is not None:
                earned -= spread.joined(penalties, first + offset)
            returns.append(turn_returns(np.bincount(turns[-1], weights=earned), chosen.turn_discount))
        estimated = turn_advantages(returns, estimator, fewest=fewest)
        for offset, by_turn, turn in zip(compared, estimated, turns, strict=True):
            spread.place(by_turn[turn], first + offset, advantages)
        first += len(group)
    return advantages


def _episodes(
    trajectories: Sequence[Trajectory],
    penalties: np.ndarray,
    mask: np.ndarray,
    settings: LossSettings,
    updates: Sequence[int],
    hosts: Hosts,
) -> Episodes:
    chosen = settings.advantage
    shape = mask.shape
    rewards, discounts = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    bootstraps, decisions = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    index = np.zeros(shape, np.int32)
    for row, (t, penalty) in enumerate(zip(trajectories, penalties, strict=True)):
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
    value_weights = _weights(decisions & mask.any(axis=1, keepdims=True), settings, updates, hosts, "token_mean")
    arrays = (rewards, discounts, bootstraps, decisions, index, value_weights)
    return Episodes(*(on_host(x) for x in arrays))
