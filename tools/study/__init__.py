"""Experiments whose results the documentation reports, each rerun by one command."""

__all__ = ()
