"""Benchmarks of the learner's step and of its losses, against Tunix, TRL and rlax."""

from tools.bench.learner.cases import Shape, uniform
from tools.bench.learner.peers import environment

__all__ = ["Shape", "environment", "uniform"]
