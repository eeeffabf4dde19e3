"""Tenants in virtual time: real admission, limits and bills on several gateways, faults by seed, and what must hold."""

from tools.testing.tenants.gateways import CutDatabase, Fault

__all__ = ["CutDatabase", "Fault"]
