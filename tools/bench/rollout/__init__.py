"""Benchmarks of sampling: the worker's own cost, its throughput, and how sampling and training overlap."""

__all__ = ()
