"""Benchmarks of verifiers: answers judged a second, beside what a peer or a plain run needs."""

from tools.bench.rewards.code import compare_code

__all__ = ["compare_code"]
