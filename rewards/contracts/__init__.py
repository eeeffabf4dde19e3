"""What a task and an environment are to the rest of Weir."""

from rewards.contracts.environment import (
    AsyncEnvironment,
    Environment,
    EpisodeState,
    ObservingEnvironment,
    Outcome,
    Reply,
    is_async,
)
from rewards.contracts.messages import Message, ToolDefinition
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
    prompt_text,
    scored,
)

__all__ = [
    "PASS_SCORE",
    "AsyncEnvironment",
    "Environment",
    "EpisodeState",
    "Failure",
    "Message",
    "ObservingEnvironment",
    "Outcome",
    "Problem",
    "Reply",
    "RewardRequest",
    "RewardResult",
    "Split",
    "Task",
    "TaskError",
    "ToolDefinition",
    "Verdict",
    "failed",
    "is_async",
    "is_failure",
    "is_reward",
    "prompt_text",
    "scored",
]
