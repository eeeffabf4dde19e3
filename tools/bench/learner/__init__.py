"""Benchmarks of the learner's step and of its losses, against Tunix, TRL and rlax."""

from tools.bench.learner.cases import Shape

__all__ = ["Shape"]
