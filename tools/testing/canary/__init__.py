"""Candidates in virtual time: the real controller and registry, simulated traffic that is good or bad in known ways."""

from tools.testing.canary.kinds import BAD, GOOD, Kind
from tools.testing.canary.run import POLICY, Outcome, roll_out

__all__ = ["BAD", "GOOD", "POLICY", "Kind", "Outcome", "roll_out"]
