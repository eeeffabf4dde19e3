"""Malformed records against everything of Weir that reads what another process wrote."""

__all__ = ()
