"""Builds the parts of a run from its configuration, checks them, and says what would be started."""
