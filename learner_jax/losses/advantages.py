"""Advantages from the rewards of whole answers, without a value function; float64 on the host.

Rewards are on the host anyway, and so the result does not depend on devices, packing or microbatches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

#: Added to standard deviations, so that rewards that are all equal give advantage 0, not NaN.
ADVANTAGE_EPS = 1e-4

Rewards = Float[np.ndarray, "G"]
#: In a list of groups, whose sizes differ.
AnyGroup = Float[np.ndarray, "_"]


def grpo(rewards: Rewards) -> Rewards:
    """(r - mean) / (std + 1e-4) within a group, population standard deviation (arXiv 2402.03300, section 4.1.2)."""
    centered = dr_grpo(rewards)
    return centered / (np.sqrt(np.mean(centered**2)) + ADVANTAGE_EPS)


def dr_grpo(rewards: Rewards) -> Rewards:
    """r - mean within a group (Dr. GRPO, arXiv 2503.20783, section 3.1).

    Dividing by the standard deviation would give prompts that are too easy or too hard more weight.
    """
    rewards = np.asarray(rewards, np.float64)
    return rewards - rewards.mean()


def rloo(rewards: Rewards) -> Rewards:
    """r_i minus the mean of the other answers' rewards (RLOO, arXiv 2402.14740, equation 8).

    Raises:
      ValueError: a group of one has no other answers.
    """
    if len(rewards) < 2:
        raise ValueError("rloo compares an answer with the others of its group: set rollout.group_size to 2 or more")
    return dr_grpo(rewards) * len(rewards) / (len(rewards) - 1)


def normalized(values: Float[np.ndarray, "B"], weights: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
    """(v - mean) / (std + 1e-4) under weights, over everything that is given; weights of 0 don't count."""
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    total = max(weights.sum(), 1e-12)
    mean = (weights * values).sum() / total
    deviation = np.sqrt((weights * (values - mean) ** 2).sum() / total)
    return (values - mean) / (deviation + ADVANTAGE_EPS)


def group_advantages(
    rewards: Sequence[AnyGroup], estimator: str | Callable[[Rewards], Rewards], *, num_tokens: Sequence[AnyGroup]
) -> list[AnyGroup]:
    """Advantage of every answer of every group.

    "reinforce_pp" normalises rewards over the whole batch, each answer counting by its sampled tokens, since the paper
    normalises over tokens (REINFORCE++, arXiv 2501.03262, equation 8); "reinforce_pp_baseline" does so after taking
    away the group's mean (same paper, section 3.3).

    Args:
      rewards: total reward of each answer, group by group.
      estimator: by name, or a function of one group's rewards.
      num_tokens: sampled tokens that are learned from, 0 for an answer that is left out.
    """
    if not isinstance(estimator, str):
        return [estimator(group) for group in rewards]
    match estimator:
        case "grpo":
            return [grpo(group) for group in rewards]
        case "dr_grpo":
            return [dr_grpo(group) for group in rewards]
        case "rloo":
            return [rloo(group) for group in rewards]
        case "reinforce_pp" | "reinforce_pp_baseline":
            parts = rewards if estimator == "reinforce_pp" else [dr_grpo(group) for group in rewards]
            flat = normalized(np.concatenate(parts), np.concatenate(num_tokens))
            return np.split(flat, np.cumsum([len(group) for group in rewards])[:-1])
        case _:
            known = "grpo, dr_grpo, rloo, reinforce_pp, reinforce_pp_baseline"
            raise ValueError(f"unknown advantage estimator {estimator!r}; known: {known}")


def overlong_penalty(length: int, *, limit: int, buffer: int, penalty: float) -> float:
    """Penalty (0 to -penalty) of an answer of `length` tokens: DAPO, arXiv 2503.14476, equation 13.

    0 up to `limit - buffer` tokens, then falling in a straight line to -penalty at `limit`. With `buffer` 0 only an
    answer of `limit` tokens is penalised.
    """
    if buffer == 0:
        return -penalty if length >= limit else 0.0
    return -penalty * min(max((length - (limit - buffer)) / buffer, 0.0), 1.0)
