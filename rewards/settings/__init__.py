"""The settings of a task."""

from rewards.settings.task import TaskSettings

__all__ = ["TaskSettings"]
