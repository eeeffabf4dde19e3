"""Evaluates any model on suites of problems: answers kept, metrics with intervals, comparisons, a page."""

from tools.evaluation.errors import EndpointError, ResultError, SuiteError
from tools.evaluation.problems import OpenSuite, SuiteProblem, open_suite
from tools.evaluation.suites import Suite, load_suite

__all__ = [
    "EndpointError",
    "OpenSuite",
    "ResultError",
    "Suite",
    "SuiteError",
    "SuiteProblem",
    "load_suite",
    "open_suite",
]
