"""Cells of several regions in virtual time: real admission, limits and routing, simulated replicas, and losses."""

__all__ = ()
