"""The settings of a task."""

from rewards.settings.curriculum import CurriculumSettings
from rewards.settings.delayed import DELAYED, DelayedSettings
from rewards.settings.episode import FLEET, EpisodeSettings
from rewards.settings.reward import RewardPart
from rewards.settings.task import ProblemSettings, SourceSettings, TaskSettings, names_file

__all__ = [
    "DELAYED",
    "FLEET",
    "CurriculumSettings",
    "DelayedSettings",
    "EpisodeSettings",
    "ProblemSettings",
    "RewardPart",
    "SourceSettings",
    "TaskSettings",
    "names_file",
]
