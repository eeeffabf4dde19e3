"""Facts about a batch of trajectories that need no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from learner_jax.batches.hygiene import GroupCounts
from learner_jax.batches.spread import Spread
from learner_jax.contracts import MAX_VERSION, Trajectory
from learner_jax.hosts import Hosts


@dataclass(frozen=True)
class BatchStats:
    """Facts about a batch that need no model.

    Attributes:
      staleness_mean: versions that an answer's oldest token lags, on average; `staleness_max` is the largest. Both are
        of answers that are not online.
      staleness_tokens: sampled tokens of these by the versions that they lag: entry k counts those of k versions.
      online_groups, online_answers: of users' sessions; the figures `online_` are theirs, None or 0 without any.
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
    online_groups: int = 0
    online_answers: int = 0
    online_tokens: int = 0
    online_reward: float | None = None
    online_staleness_mean: float = 0.0
    online_staleness_max: int = 0


def batch_stats(
    trajectories: Sequence[Trajectory],
    spread: Spread,
    versions: Int[np.ndarray, "B T"],
    sampled: Bool[np.ndarray, "B T"],
    trained_version: int,
    counts: GroupCounts,
    hosts: Hosts,
) -> BatchStats:
    """Of the trajectories of all hosts, to which `trajectories` and `counts` are this one's part.

    Args:
      spread: of the trajectories over rows.
      versions, sampled: of the tokens of the rows; versions are `NOT_SAMPLED` where no policy sampled.
    """
    own = _own_figures(trajectories, spread, versions, sampled, trained_version)
    every = hosts.gather([own.sums | asdict(counts), own.parts, own.largest, own.by_lag], "statistics of the batch")
    total = {name: sum(sums[name] for sums, *_ in every) for name in every[0][0]}
    answers = total["answers"]
    return BatchStats(
        reward=total["reward"] / total["judged"] if total["judged"] else None,
        reward_parts=_part_means([parts for _, parts, *_ in every]),
        staleness_mean=total["lag"] / max(1, answers - total["online_answers"]),
        staleness_max=max(largest[0] for _, _, largest, _ in every),
        staleness_tokens=[sum(counts) for counts in zip_longest(*(by_lag for *_, by_lag in every), fillvalue=0)],
        num_tokens=total["tokens"],
        answer_tokens_mean=total["tokens"] / answers,
        truncated_share=total["truncated"] / answers,
        mixed_version_answers=total["mixed"],
        **{name: total[name] for name in asdict(counts)},
        online_groups=total["online_groups"],
        online_answers=total["online_answers"],
        online_tokens=total["online_tokens"],
        online_reward=total["online_reward"] / total["online_judged"] if total["online_judged"] else None,
        online_staleness_mean=total["online_lag"] / max(1, total["online_answers"]),
        online_staleness_max=max(largest[1] for _, _, largest, _ in every),
    )


class _Own(NamedTuple):
    """One host's part of the figures.

    Attributes:
      sums: over its answers, which hosts add up.
      parts: as `_part_sums`.
      largest: lag in versions of its answers that are not online, and of those that are.
      by_lag: sampled tokens that are not online, by their lag.
    """

    sums: dict[str, Any]
    parts: dict[str, tuple[float, int]]
    largest: list[int]
    by_lag: list[int]


def _own_figures(
    trajectories: Sequence[Trajectory],
    spread: Spread,
    versions: Int[np.ndarray, "B T"],
    sampled: Bool[np.ndarray, "B T"],
    trained_version: int,
) -> _Own:
    judged = [t for t in trajectories if t.is_judged]
    judged_online = [t for t in judged if t.source == "online"]
    oldest = spread.reduced(np.where(sampled, versions, MAX_VERSION).min(axis=1), np.minimum)
    newest = spread.reduced(versions.max(axis=1), np.maximum)
    online = np.array([t.source == "online" for t in trajectories], np.bool_)
    lags = trained_version - oldest.astype(np.int64)
    tokens_online = sampled & spread.given(online)[:, None]
    sums = {
        "answers": len(trajectories),
        "judged": len(judged),
        "reward": float(sum(t.total_reward for t in judged)),
        "lag": int(lags[~online].sum()),
        "tokens": int(np.count_nonzero(sampled)),
        "truncated": sum(t.finish_reason == "length" for t in trajectories),
        "mixed": int(np.count_nonzero(oldest != newest)),
        "online_groups": len({t.group_id for t in trajectories if t.source == "online"}),
        "online_answers": int(online.sum()),
        "online_judged": len(judged_online),
        "online_reward": float(sum(t.total_reward for t in judged_online)),
        "online_lag": int(lags[online].sum()),
        "online_tokens": int(np.count_nonzero(tokens_online)),
    }
    by_lag = np.bincount(np.maximum(trained_version - versions[sampled & ~tokens_online], 0)).tolist()
    largest = [int(lags[~online].max(initial=0)), int(lags[online].max(initial=0))]
    return _Own(sums, _part_sums(judged), largest, by_lag)


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
