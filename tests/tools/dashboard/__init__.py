"""Tests of `tools.dashboard`."""
