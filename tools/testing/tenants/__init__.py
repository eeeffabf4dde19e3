"""Tenants in virtual time: real admission, limits and bills on several gateways, faults by seed, and what must hold."""

__all__ = ()
