"""The tasks that come with Weir."""

from rewards.tasks.create import create_task

__all__ = ["create_task"]
