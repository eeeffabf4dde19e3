"""The dialogs that come with Weir."""

from rewards.environments.feedback import FeedbackEnvironment, create_environment

__all__ = ["FeedbackEnvironment", "create_environment"]
