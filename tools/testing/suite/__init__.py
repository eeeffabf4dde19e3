"""What the tests cost and what they see, as a page of the documentation."""

from tools.testing.suite.results import Case, ResultsError, Run, read_run

__all__ = ["Case", "ResultsError", "Run", "read_run"]
