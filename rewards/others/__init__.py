"""Environments of other libraries, unmodified: each module has `rows` for `task.data` and `play` for an agent."""

from rewards.others.needed import MissingLibraryError, needed

__all__ = ["MissingLibraryError", "needed"]
