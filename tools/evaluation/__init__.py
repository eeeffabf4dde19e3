"""Evaluates any model on suites of problems: answers kept, metrics with intervals, comparisons, a page.

`page` needs Jinja and Matplotlib, which take half a second to import: whoever writes pages imports that file.
"""

from tools.evaluation.answers import AnswerLog
from tools.evaluation.arguments import add_suite_arguments, add_training_arguments, model_place, plan_of, training_of
from tools.evaluation.asking import Identity
from tools.evaluation.compare import compare, print_comparison
from tools.evaluation.contamination import Training, overlaps
from tools.evaluation.errors import EndpointError, ResultError, SuiteError
from tools.evaluation.examine import examine
from tools.evaluation.problems import OpenSuite, SuiteProblem, open_suite
from tools.evaluation.replica import FolderPrompts, ReplicaModel
from tools.evaluation.results import read_results
from tools.evaluation.session import Plan, Watch, run_plan
from tools.evaluation.shown import overlap_text, print_results
from tools.evaluation.suites import Suite, load_suite, parse_suite

__all__ = [
    "AnswerLog",
    "EndpointError",
    "FolderPrompts",
    "Identity",
    "OpenSuite",
    "Plan",
    "ReplicaModel",
    "ResultError",
    "Suite",
    "SuiteError",
    "SuiteProblem",
    "Training",
    "Watch",
    "add_suite_arguments",
    "add_training_arguments",
    "compare",
    "examine",
    "load_suite",
    "model_place",
    "open_suite",
    "overlap_text",
    "overlaps",
    "parse_suite",
    "plan_of",
    "print_comparison",
    "print_results",
    "read_results",
    "run_plan",
    "training_of",
]
