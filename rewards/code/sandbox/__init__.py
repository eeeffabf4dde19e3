"""Runs hostile code: sandboxes that are proven first, hold one answer each, and die with what runs in them."""

from rewards.code.sandbox.limits import Limits, Program, Report, SandboxError
from rewards.code.sandbox.pool import SandboxPool
from rewards.code.sandbox.start import TIERS, missing, open_pool

__all__ = ["TIERS", "Limits", "Program", "Report", "SandboxError", "SandboxPool", "missing", "open_pool"]
