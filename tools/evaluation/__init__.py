"""Evaluates any model on suites of problems: answers kept, metrics with intervals, comparisons, a page.

`page` needs Jinja and Matplotlib, which take half a second to import: whoever writes pages imports that file.
"""

from tools.evaluation.answers import AnswerLog
from tools.evaluation.arguments import add_suite_arguments, add_training_arguments, model_place, plan_of, training_of
from tools.evaluation.asking import Identity, first_question
from tools.evaluation.compare import compare, print_comparison, problem_number
from tools.evaluation.contamination import Training, overlaps
from tools.evaluation.endpoint import Endpoint as EndpointModel
from tools.evaluation.endpoint import EndpointSettings
from tools.evaluation.errors import EndpointError, ResultError, SuiteError
from tools.evaluation.examine import examine
from tools.evaluation.intervals import cluster_sums, t_quantile
from tools.evaluation.problems import OpenSuite, SuiteProblem, open_suite
from tools.evaluation.replica import FolderPrompts, ReplicaModel
from tools.evaluation.results import read_measured, read_results, read_samples
from tools.evaluation.session import Plan, Watch, run_plan
from tools.evaluation.shown import overlap_text, print_results
from tools.evaluation.sources import Source
from tools.evaluation.suites import Sampling, Suite, load_suite, parse_suite

__all__ = [
    "AnswerLog",
    "EndpointError",
    "EndpointModel",
    "EndpointSettings",
    "FolderPrompts",
    "Identity",
    "OpenSuite",
    "Plan",
    "ReplicaModel",
    "ResultError",
    "Sampling",
    "Source",
    "Suite",
    "SuiteError",
    "SuiteProblem",
    "Training",
    "Watch",
    "add_suite_arguments",
    "add_training_arguments",
    "cluster_sums",
    "compare",
    "examine",
    "first_question",
    "load_suite",
    "model_place",
    "open_suite",
    "overlap_text",
    "overlaps",
    "parse_suite",
    "plan_of",
    "print_comparison",
    "print_results",
    "problem_number",
    "read_measured",
    "read_results",
    "read_samples",
    "run_plan",
    "t_quantile",
    "training_of",
]
