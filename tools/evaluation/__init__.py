"""Evaluates any model on suites of problems: answers kept, metrics with intervals, comparisons, a page."""
