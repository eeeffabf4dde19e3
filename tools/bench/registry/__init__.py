"""Benchmark of the registry's index: what looking at it and moving an alias cost when it is large."""

from tools.bench.registry.command import measure

__all__ = ["measure"]
