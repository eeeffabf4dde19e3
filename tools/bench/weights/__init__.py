"""Benchmarks of weights on their way: converting, saving, publishing and taking them over."""

__all__ = ()
