"""Starts what a job is made of, here or on a cluster, looks after it, and measures what came of it."""

from tools.launch.evaluation import evaluate_folder
from tools.launch.job import Job
from tools.launch.local_run import INTERRUPTED, carry_out, in_charge, take_up, train

__all__ = ["INTERRUPTED", "Job", "carry_out", "evaluate_folder", "in_charge", "take_up", "train"]
