"""What a task and an environment are to the rest of Weir."""

from rewards.contracts.environment import Environment, EpisodeState, Outcome, Reply
from rewards.contracts.task import (
    PASS_SCORE,
    Failure,
    Problem,
    RewardRequest,
    RewardResult,
    Split,
    Task,
    TaskError,
    Verdict,
    failed,
    is_failure,
    is_reward,
    scored,
)

__all__ = [
    "PASS_SCORE",
    "Environment",
    "EpisodeState",
    "Failure",
    "Outcome",
    "Problem",
    "Reply",
    "RewardRequest",
    "RewardResult",
    "Split",
    "Task",
    "TaskError",
    "Verdict",
    "failed",
    "is_failure",
    "is_reward",
    "scored",
]
