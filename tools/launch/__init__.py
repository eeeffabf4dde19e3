"""Starts what a job is made of, looks after it, and measures what came of it."""

from tools.launch.evaluation import evaluate_folder
from tools.launch.local_job import Job

__all__ = ["Job", "evaluate_folder"]
