"""From trajectories to the fixed-shape arrays of one train step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from learner_jax.batches.estimators import estimator_of
from learner_jax.batches.hygiene import GroupCounts, clean_groups
from learner_jax.batches.packing import Lengths, Plan
from learner_jax.contracts import NOT_SAMPLED, Trajectory
from learner_jax.hosts import Hosts
from learner_jax.losses import ESTIMATORS, group_advantages, loss_counts, loss_weights
from learner_jax.models import Layout
from learner_jax.runtime import WeirError
from learner_jax.settings import LossSettings


class BatchError(WeirError, ValueError):
    """A trajectory doesn't fit the learner's fixed shapes."""


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


@dataclass(frozen=True)
class Sequences:
    """The sequences of a batch, one a row, right-padded with token 0; on the host.

    Attributes:
      sampled: whether the policy sampled the token.
    """

    tokens: Int[np.ndarray, "B T"]
    sampled: Bool[np.ndarray, "B T"]
    lengths: Lengths


#: The reference's log-probs of sequences, float32[B, T], nats; those of tokens that were not sampled are not used.
Reference = Callable[[Sequences], np.ndarray]


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
      lengths, groups, shared: of each sequence, as in `packing.Lengths`; None on packed rows. Without `lengths`, all T
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


@dataclass(frozen=True)
class BatchStats:
    """Facts about a batch that need no model.

    Attributes:
      staleness_mean: versions that an answer's oldest token lags, on average; `staleness_max` is the largest.
      staleness_tokens: sampled tokens by the versions that they lag: entry k counts those of k versions.
      reward: mean over the answers that were judged; None if none was. A part's mean is over those that have it.
    """

    reward: float | None
    reward_parts: dict[str, float]
    staleness_mean: float
    staleness_max: int
    staleness_tokens: list[int]
    num_tokens: int
    answer_tokens_mean: float
    zero_variance_groups: int
    truncated_share: float
    mixed_version_answers: int
    dropped_groups: int
    masked_overlong: int
    penalized_overlong: int
    masked_aborted: int
    failed_verdicts: int
    unjudged_groups: int


def _rows(rows: Sequence[np.ndarray], length: int, dtype: type, fill: float = 0) -> Any:
    out: Any = np.full((len(rows), length), fill, dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def _on_host(array: np.ndarray) -> Any:
    """A host array where `Batch` declares what the train step will see: a JAX array of the same shape and dtype."""
    return array


def group_lengths(groups: Sequence[Sequence[Trajectory]]) -> Lengths:
    """Lengths of all trajectories, and how many leading, unsampled tokens those of a group have in common."""
    shared = [_shared_tokens(group) for group in groups]
    sizes = [len(group) for group in groups]
    return Lengths(
        tokens=np.array([len(t.tokens) for group in groups for t in group], np.int64),
        groups=np.repeat(np.arange(len(groups)), sizes),
        shared=np.repeat(np.array(shared, np.int64), sizes),
    )


def _shared_tokens(group: Sequence[Trajectory]) -> int:
    if len(group) < 2:
        return 0
    length = min(int(np.argmax(t.loss_mask)) for t in group)
    prompts = np.stack([t.tokens[:length] for t in group])
    differs = (prompts != prompts[0]).any(axis=0)
    return int(np.argmax(differs)) if differs.any() else length


def sequences(groups: Sequence[Sequence[Trajectory]], *, sequence_length: int) -> Sequences:
    """All trajectories, one a row of `sequence_length` tokens.

    Raises:
      BatchError: a trajectory is longer.
    """
    trajectories = [trajectory for group in groups for trajectory in group]
    _check_lengths(trajectories, sequence_length)
    return Sequences(
        tokens=_rows([t.tokens for t in trajectories], sequence_length, np.int32),
        sampled=_rows([t.loss_mask for t in trajectories], sequence_length, np.bool_),
        lengths=group_lengths(groups),
    )


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


def rl_batch(
    groups: Sequence[Sequence[Trajectory]],
    settings: LossSettings,
    *,
    sequence_length: int,
    trained_version: int,
    minibatches: int | Sequence[int] = 1,
    reference: Reference | None = None,
    kl_coefficient: float = 0.0,
    hosts: Hosts | None = None,
) -> tuple[Batch, BatchStats]:
    """Builds the batch of one reinforcement-learning step, or this host's part of it.

    Args:
      minibatches: optimizer updates that the rows will be cut into; each has its own normaliser. Their number, if they
        are of one size, or the rows of each.
      reference: log-probs of the frozen reference, if the loss has a KL.
      kl_coefficient: weight of a KL that is part of the reward; estimators without values take it into account here.
      hosts: that hold the other parts of the batch; normalisers and statistics are those of the whole.
    Raises:
      BatchError: a trajectory is longer than `sequence_length`.
    """
    trajectories = [trajectory for group in groups for trajectory in group]
    rows = sequences(groups, sequence_length=sequence_length)
    hosts = hosts or Hosts()
    updates = [len(trajectories) // minibatches] * minibatches if isinstance(minibatches, int) else minibatches
    cleaned = clean_groups(groups, settings.groups)
    mask = rows.sampled & np.concatenate(cleaned.learned)[:, None]
    behavior = _rows([t.behavior_logprobs for t in trajectories], sequence_length, np.float32)
    reference_logprobs = None if reference is None else reference(rows)
    if settings.advantage.uses_values:
        advantages: Any = np.zeros(mask.shape, np.float32)
        episodes = _episodes(trajectories, cleaned.penalties, mask, settings, updates, hosts)
    else:
        rewards = cleaned.rewards
        if settings.kl.use == "reward" and reference_logprobs is not None:
            estimator = ESTIMATORS[settings.kl.estimator]
            penalty = np.asarray(estimator(behavior, _on_host(reference_logprobs)), np.float64)
            per_answer = kl_coefficient * np.where(mask, penalty, 0.0).sum(axis=1)
            cuts = np.cumsum([len(group) for group in groups])[:-1]
            rewards = [r - p for r, p in zip(rewards, np.split(per_answer, cuts), strict=True)]
        answers = _answer_advantages(rewards, cleaned.valid, mask, settings, hosts)
        advantages = (answers * mask).astype(np.float32)
        episodes = None
    batch = Batch(
        tokens=_on_host(rows.tokens),
        weights=_weights(mask, settings, updates, hosts),
        advantages=advantages,
        behavior_logprobs=behavior,
        policy_version=_rows([t.policy_version for t in trajectories], sequence_length, np.int32, NOT_SAMPLED),
        reference_logprobs=None if reference_logprobs is None else _on_host(reference_logprobs),
        episodes=episodes,
        lengths=_on_host(rows.lengths.tokens),
        groups=_on_host(rows.lengths.groups),
        shared=_on_host(rows.lengths.shared),
    )
    return batch, _stats(trajectories, trained_version, cleaned.counts, hosts)


def _check_lengths(trajectories: Sequence[Trajectory], sequence_length: int) -> None:
    for t in trajectories:
        if len(t.tokens) > sequence_length:
            raise BatchError(
                f"trajectory {t.trajectory_id} has {len(t.tokens)} tokens, rows hold {sequence_length}: "
                f"raise learner.sequence_length"
            )


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
    mask: np.ndarray,
    settings: LossSettings,
    hosts: Hosts,
) -> np.ndarray:
    """Advantage of every answer [B, 1]; answers without a valid reward are left out of their group's statistics."""
    cuts = np.cumsum([len(group) for group in rewards])[:-1]
    num_tokens = np.split(mask.sum(axis=1).astype(np.float64), cuts)
    needed = 2 if settings.advantage.estimator == "rloo" else 1
    complete = [i for i, answers in enumerate(valid) if answers.sum() >= needed]
    compared, counted = [rewards[i][valid[i]] for i in complete], [num_tokens[i][valid[i]] for i in complete]
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


def _episodes(
    trajectories: Sequence[Trajectory],
    penalties: Sequence[np.ndarray],
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
    value_weights = _weights(decisions & mask.any(axis=1, keepdims=True), settings, updates, hosts, "token_mean")
    on_host = [_on_host(x) for x in (rewards, discounts, bootstraps, decisions, index, value_weights)]
    return Episodes(*on_host)


def _stats(trajectories: Sequence[Trajectory], trained_version: int, counts: GroupCounts, hosts: Hosts) -> BatchStats:
    judged = [t for t in trajectories if t.is_judged]
    lags = [trained_version - t.oldest_version for t in trajectories]
    sums = {
        "answers": len(trajectories),
        "judged": len(judged),
        "reward": float(sum(t.total_reward for t in judged)),
        "lag": sum(lags),
        "tokens": sum(int(t.loss_mask.sum()) for t in trajectories),
        "truncated": sum(t.finish_reason == "length" for t in trajectories),
        "mixed": sum(len(np.unique(t.policy_version[t.loss_mask])) > 1 for t in trajectories),
    } | asdict(counts)
    parts = _part_sums(judged)
    versions = np.concatenate([t.policy_version[t.loss_mask] for t in trajectories])
    by_lag = np.bincount(np.maximum(trained_version - versions, 0)).tolist()
    every = hosts.gather([sums, parts, max(lags), by_lag], "statistics of the batch")
    total = {name: sum(sums[name] for sums, *_ in every) for name in sums}
    answers = total["answers"]
    return BatchStats(
        reward=total["reward"] / total["judged"] if total["judged"] else None,
        reward_parts=_part_means([parts for _, parts, *_ in every]),
        staleness_mean=total["lag"] / answers,
        staleness_max=max(lag for _, _, lag, _ in every),
        staleness_tokens=[sum(counts) for counts in zip_longest(*(by_lag for *_, by_lag in every), fillvalue=0)],
        num_tokens=total["tokens"],
        answer_tokens_mean=total["tokens"] / answers,
        truncated_share=total["truncated"] / answers,
        mixed_version_answers=total["mixed"],
        **{name: total[name] for name in asdict(counts)},
    )


def _part_sums(judged: Sequence[Trajectory]) -> dict[str, tuple[float, int]]:
    """(sum, number of answers that have it) of every part of the reward."""
    sums: dict[str, tuple[float, int]] = {}
    for trajectory in judged:
        for name, value in trajectory.reward_parts.items():
            total, count = sums.get(name, (0.0, 0))
            sums[name] = (total + value, count + 1)
    return sums


def _part_means(sums_of_hosts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Mean of every part over the answers of all hosts that have it."""
    names = sorted({name for sums in sums_of_hosts for name in sums})
    found = {name: [sums[name] for sums in sums_of_hosts if name in sums] for name in names}
    return {name: sum(s for s, _ in pairs) / sum(n for _, n in pairs) for name, pairs in found.items()}


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
    lengths = Lengths.of([len(tokens) for tokens, _ in examples])
    return Batch(
        tokens=_rows([np.asarray(tokens) for tokens, _ in examples], sequence_length, np.int32),
        weights=_on_host(loss_weights(mask, reduction=reduction)),
        advantages=zeros,
        behavior_logprobs=zeros,
        policy_version=_on_host(np.full(mask.shape, NOT_SAMPLED, np.int32)),
        lengths=_on_host(lengths.tokens),
        groups=_on_host(lengths.groups),
        shared=_on_host(lengths.shared),
    )


def preference_batch(
    pairs: Sequence[tuple[Example, Example]],
    *,
    sequence_length: int,
    reference: Reference | None = None,
) -> Batch:
    """Builds a batch for DPO or Bradley-Terry: rows 2i and 2i + 1 are the chosen and the rejected answer of pair i.

    Args:
      reference: log-probs of the frozen reference; DPO needs it.
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
    given = Sequences(np.asarray(batch.tokens), np.asarray(batch.weights) > 0, batch_lengths(batch))
    return replace(batch, reference_logprobs=_on_host(reference(given)))
