"""Evaluates any model on suites of problems: answers kept, metrics with intervals, comparisons, a page.

`page` needs Jinja and Matplotlib, which take half a second to import: whoever writes pages imports that file.
"""

from tools.evaluation.arguments import add_suite_arguments, add_training_arguments, plan_of, training_of
from tools.evaluation.compare import compare, print_comparison
from tools.evaluation.contamination import Training, overlaps
from tools.evaluation.errors import EndpointError, ResultError, SuiteError
from tools.evaluation.problems import OpenSuite, SuiteProblem, open_suite
from tools.evaluation.results import read_results
from tools.evaluation.session import Plan, Watch, run_plan
from tools.evaluation.shown import overlap_text, print_results
from tools.evaluation.suites import Suite, load_suite

__all__ = [
    "EndpointError",
    "OpenSuite",
    "Plan",
    "ResultError",
    "Suite",
    "SuiteError",
    "SuiteProblem",
    "Training",
    "Watch",
    "add_suite_arguments",
    "add_training_arguments",
    "compare",
    "load_suite",
    "open_suite",
    "overlap_text",
    "overlaps",
    "plan_of",
    "print_comparison",
    "print_results",
    "read_results",
    "run_plan",
    "training_of",
]
