"""Benchmarks against peers; each checks first that both sides compute the same."""

from __future__ import annotations

from learner_jax.runtime import WeirError


class BenchmarkError(WeirError):
    """A benchmark that cannot be measured: its results disagree with the peer's, or the peer cannot be had."""
