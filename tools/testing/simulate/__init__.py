"""The whole run in one thread and in virtual time: the real queue, gate, fleet and workers, and faults by seed."""

__all__ = ()
