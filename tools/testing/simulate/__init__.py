"""The whole run in virtual time: real queue, learner's loop, weight store, fleet and workers, and faults by seed."""

from tools.testing.simulate.loop import EPOCH_S, Process, SimulatedLoop

__all__ = ["EPOCH_S", "Process", "SimulatedLoop"]
