"""The tasks that come with Weir, and the ways of a user's own."""

from rewards.sandbox import REWARD
from rewards.tasks.create import TASK, create_task
from rewards.tasks.jsonl_lines import read_file, records, text_of
from rewards.tasks.judge import TaskJudge, create_judge
from rewards.tasks.problems import GeneratedProblems, ListedProblems
from rewards.tasks.row_sources import DATA

__all__ = [
    "DATA",
    "REWARD",
    "TASK",
    "GeneratedProblems",
    "ListedProblems",
    "TaskJudge",
    "create_judge",
    "create_task",
    "read_file",
    "records",
    "text_of",
]
