"""Makes small valid trajectories for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from learner_jax.contracts.weights import NOT_SAMPLED, Trajectory


def make_group(
    group_id: str = "run/0",
    *,
    size: int = 2,
    prompt_tokens: int = 3,
    answer_tokens: int = 2,
    version: int = 1,
    seed: int = 0,
    vocabulary: int = 32,
    rewards: list[float] | None = None,
) -> list[Trajectory]:
    """A group of `size` trajectories with random tokens and log-probs."""
    rng = np.random.default_rng(seed)
    length = prompt_tokens + answer_tokens
    mask = np.arange(length) >= prompt_tokens
    prompt = rng.integers(1, vocabulary, prompt_tokens)
    group = []
    for sample in range(size):
        tokens = np.concatenate([prompt, rng.integers(1, vocabulary, answer_tokens)]).astype(np.int32)
        reward = np.zeros(length, np.float32)
        reward[-1] = rewards[sample] if rewards else rng.integers(0, 2)
        group.append(
            Trajectory(
                trajectory_id=f"{group_id}/{sample}",
                group_id=group_id,
                group_size=size,
                prompt={"index": int(group_id.rpartition("/")[2])},
                tokens=tokens,
                loss_mask=mask,
                behavior_logprobs=np.where(mask, -rng.random(length), 0.0).astype(np.float32),
                policy_version=np.where(mask, version, NOT_SAMPLED).astype(np.int32),
                turn=np.zeros(length, np.int32),
                rewards=reward,
                reward_parts={"correct": float(reward[-1])},
                verdict="pass" if reward[-1] >= 1 else "fail",
                finish_reason="stop",
                sampling={"temperature": 1.0},
                reward_version="test 1",
            )
        )
    return group


def failing(trajectory: Trajectory, verdict: Any = "timeout") -> Trajectory:
    """The same answer, had its verifier failed."""
    return dataclasses.replace(
        trajectory,
        verdict=verdict,
        verdict_reason="no verdict within 5 s",
        rewards=np.zeros_like(trajectory.rewards),
        reward_parts={},
    )


def pending(group: list[Trajectory]) -> list[Trajectory]:
    """The same answers before their rewards have come."""
    return [dataclasses.replace(failing(trajectory, "pending"), verdict_reason="") for trajectory in group]
