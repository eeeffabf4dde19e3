"""The settings of a task."""

from rewards.settings.episode import FLEET, EpisodeSettings
from rewards.settings.task import TaskSettings, names_file

__all__ = ["FLEET", "EpisodeSettings", "TaskSettings", "names_file"]
