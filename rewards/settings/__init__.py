"""The settings of a task."""

from rewards.settings.task import TaskSettings, names_file

__all__ = ["TaskSettings", "names_file"]
