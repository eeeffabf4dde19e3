"""Benchmark of whole runs: Weir's job beside TRL's and Tunix's trainers, from the same start on the same work."""

__all__ = ()
