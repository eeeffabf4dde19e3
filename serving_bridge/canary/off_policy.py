"""A first look at a candidate that nobody was answered by: its value from the logs of another policy.

Rows were sampled by the behaviour policy, whose log-probs were logged. With importance weights
w = exp(target - behavior):

    IPS     mean(w r)                                       (Horvitz, Thompson 1952)
    SNIPS   sum(w r) / sum(w)                               (Swaminathan, Joachims 2015)
    DR      mean(v + w (r - q))                             (Dudik, Langford, Li 2011)

q is a model's guess of the reward of what was answered, v its guess of what the target would get. The effective sample
size is sum(w)^2 / sum(w^2) (Kong 1992): where it is small, a handful of rows decide, and nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from serving_bridge.canary.errors import CanaryError

MIN_EFFECTIVE = 100.0
#: A weight beyond this is a ratio of probabilities that no sample of ours can carry.
_MAX_LOG_RATIO = 30.0


@dataclass(frozen=True)
class Logged:
    """One logged answer.

    Attributes:
      behavior_logprob: of the whole answer, under the policy that sampled it.
      target_logprob: of the same answer, under the candidate.
      guess, value: q and v; None for no model.
    """

    reward: float
    behavior_logprob: float
    target_logprob: float
    guess: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval by the normal approximation."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OffPolicy:
    """What the logs say of a candidate.

    Attributes:
      behavior: mean reward of the rows as they were answered.
      doubly_robust: None where rows have no guesses.
      effective: sample size.
      largest: share of the largest weight in the sum of weights.
    """

    rows: int
    effective: float
    largest: float
    behavior: Estimate
    ips: Estimate
    self_normalised: Estimate
    doubly_robust: Estimate | None


def off_policy(rows: Sequence[Logged], *, min_effective: float = MIN_EFFECTIVE) -> OffPolicy:
    """Estimates a candidate's mean reward.

    Raises:
      CanaryError: a number is none, some rows have a guess and others not, or the effective sample size is too small.
    """
    ratios = np.array([row.target_logprob - row.behavior_logprob for row in rows])
    rewards = np.array([row.reward for row in rows])
    if not len(rows) or not np.isfinite(rewards).all() or np.isnan(ratios).any():
        raise CanaryError(f"{len(rows)} rows: expected some, with finite rewards and log-probs")
    if ratios.max() > _MAX_LOG_RATIO:
        raise CanaryError(
            f"an answer is e^{ratios.max():.0f} times as likely under the candidate as it was: the policies share no "
            f"ground; a canary with real traffic is needed"
        )
    weights = np.exp(ratios)
    total = float(weights.sum())
    effective = total**2 / float((weights**2).sum()) if total else 0.0
    if effective < min_effective:
        raise CanaryError(
            f"the effective sample size is {effective:.1f} of {len(rows)} rows, expected at least {min_effective:g}: "
            f"the candidate answers too differently for these logs; take more rows, a nearer candidate, or a canary"
        )
    mean = float((weights * rewards).sum()) / total
    linear = (weights * (rewards - mean)) / (total / len(rows))
    return OffPolicy(
        len(rows),
        effective,
        float(weights.max()) / total,
        _estimate(rewards),
        _estimate(weights * rewards),
        _estimate(mean + linear),
        _doubly_robust(rows, weights, rewards),
    )


def _doubly_robust(rows: Sequence[Logged], weights: np.ndarray, rewards: np.ndarray) -> Estimate | None:
    guesses = [(row.guess, row.value) for row in rows]
    known = sum(guess is not None and value is not None for guess, value in guesses)
    if not known:
        return None
    if known < len(rows):
        raise CanaryError(f"{known} of {len(rows)} rows have guess and value: expected all of them, or none")
    guess, value = np.array(guesses, dtype=np.float64).T
    return _estimate(value + weights * (rewards - guess))


def _estimate(terms: np.ndarray) -> Estimate:
    """Mean of independent terms."""
    mean = float(terms.mean())
    half = (
        NormalDist().inv_cdf(0.975) * float(terms.std(ddof=1)) / math.sqrt(len(terms)) if len(terms) > 1 else math.inf
    )
    return Estimate(mean, mean - half, mean + half)
