"""The whole run in virtual time: real queue, learner's loop, weight store, fleet and workers, and faults by seed."""

__all__ = ()
