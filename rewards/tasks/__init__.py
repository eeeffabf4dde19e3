"""The tasks that come with Weir, and the ways of a user's own."""

from rewards.data import DATA, read_file, records, text_of
from rewards.sandbox import REWARD
from rewards.tasks.create import TASK, create_task
from rewards.tasks.delayed import DelayedTask, delayed_sources, played_task
from rewards.tasks.framed import FramedTask
from rewards.tasks.judge import RewardJudge, TaskJudge, create_judge
from rewards.tasks.mixture import MixtureTask
from rewards.tasks.problems import GeneratedProblems, ListedProblems
from rewards.tasks.rows import RowsTask

__all__ = [
    "DATA",
    "REWARD",
    "TASK",
    "DelayedTask",
    "FramedTask",
    "GeneratedProblems",
    "ListedProblems",
    "MixtureTask",
    "RewardJudge",
    "RowsTask",
    "TaskJudge",
    "create_judge",
    "create_task",
    "delayed_sources",
    "played_task",
    "read_file",
    "records",
    "text_of",
]
