"""Faults on real processes: a small training job is killed, cut off and damaged, and what must hold is checked."""

__all__ = ()
