"""The dialogs that come with Weir, and the way of a user's own."""

from rewards.environments.agent import AgentEnvironment
from rewards.environments.create import create_environment, declared_tools, end_environment
from rewards.environments.feedback import FeedbackEnvironment
from rewards.environments.final_answer import abstains, citations
from rewards.environments.own_environment import environment_pool, played
from rewards.sandbox import ENVIRONMENT

__all__ = [
    "ENVIRONMENT",
    "AgentEnvironment",
    "FeedbackEnvironment",
    "abstains",
    "citations",
    "create_environment",
    "declared_tools",
    "end_environment",
    "environment_pool",
    "played",
]
