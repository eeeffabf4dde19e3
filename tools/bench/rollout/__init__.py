"""Benchmarks of sampling: the worker's own cost and throughput, slow rewards beside it, sampling beside training."""

__all__ = ()
